//! A headless Chromium in the namespace of a host, driven by the DevTools protocol over a pipe.
//!
//! It speaks JSON with a zero byte behind each message, over its file descriptors 3 and 4.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kpng_testkit::network::Host;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

const FLAGS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--window-size=1280,900",
    "--remote-debugging-pipe",
];

/// A browser with one page. It ends when dropped.
pub(crate) struct Browser {
    child: Child,
    to: RefCell<ChildStdin>,
    from: Receiver<Value>,
    session: String,
    next: Cell<u64>,
    /// What the page did since, other than answering.
    events: RefCell<Vec<Value>>,
    _profile: TempDir,
}

impl Browser {
    /// Starts it. `None` where there is none and the environment says to skip
    /// (`KPNG_SKIP_BROWSER=1`).
    pub(crate) fn start(host: &Host) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // The shell gives its standard input and output to the browser as descriptors 3 and 4.
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>&2"#, "chromium"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(profile.path().join("log")).unwrap());
        let mut child = host.run(move || command.spawn().unwrap());
        let (sender, from) = channel();
        let mut messages = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while messages.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let value = serde_json::from_slice(&message).unwrap();
                message.clear();
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let to = RefCell::new(child.stdin.take().unwrap());
        let mut browser = Self {
            child,
            to,
            from,
            session: String::new(),
            next: Cell::new(1),
            events: RefCell::default(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Goes to an address, and waits until the page is loaded.
    pub(crate) fn open(&self, address: &str) {
        self.events.borrow_mut().retain(|event| event["method"] != "Page.loadEventFired");
        let went = self.call("Page.navigate", json!({ "url": address }));
        assert_eq!(went.get("errorText"), None, "{address}: {went}");
        // Another place in the same page loads nothing.
        if went.get("loaderId").is_some() {
            self.wait_for_event("Page.loadEventFired");
        }
    }

    /// The value of an expression in the page.
    pub(crate) fn evaluate(&self, expression: &str) -> Value {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", parameters);
        assert_eq!(result.get("exceptionDetails"), None, "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// What is to be seen of the first element that fits; empty where there is none.
    pub(crate) fn text(&self, selector: &str) -> String {
        let found = format!("document.querySelector({})", json!(selector));
        let text = self.evaluate(&format!("{found}?.checkVisibility() ? {found}.innerText : ''"));
        text.as_str().unwrap().to_owned()
    }

    /// Waits until what is to be seen of an element fits, and returns it.
    #[track_caller]
    pub(crate) fn wait_text(&self, selector: &str, fits: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text(selector);
            if fits(&text) {
                return text;
            }
            let page = self.evaluate("document.body.innerText");
            let page = page.as_str().unwrap();
            assert!(Instant::now() < deadline, "{selector} stays {text:?} in\n{page}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clicks at the middle of the first element that fits, as a mouse does.
    pub(crate) fn click(&self, selector: &str) {
        let place = self.evaluate(&format!(
            "(() => {{ const found = document.querySelector({}); found.scrollIntoView(); \
             const box = found.getBoundingClientRect(); \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            json!(selector)
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types into a field, in place of what is in it.
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let field = format!("document.querySelector({})", json!(selector));
        self.evaluate(&format!("{field}.focus(), {field}.select()"));
        match text {
            "" => self.key("Backspace", 8, ""),
            text => drop(self.call("Input.insertText", json!({ "text": text }))),
        }
    }

    /// Presses a key, where the focus is.
    pub(crate) fn key(&self, key: &str, code: u8, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Complaints of the page: errors, violations of its policy, whatever it wrote to the console; and
    /// requests to anywhere else than `home`.
    pub(crate) fn complaints(&self, home: &str) -> Vec<String> {
        // What it has to say so far is here when an answer is.
        self.evaluate("0");
        let events = self.events.borrow();
        let complaint = |event: &Value| {
            let parameters = &event["params"];
            match event["method"].as_str()? {
                "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" => {
                    Some(parameters.to_string())
                }
                "Network.requestWillBeSent" => {
                    let address = parameters["request"]["url"].as_str()?;
                    (!address.starts_with(home)).then(|| address.to_owned())
                }
                _ => None,
            }
        };
        events.iter().filter_map(complaint).collect()
    }

    fn call(&self, method: &str, parameters: Value) -> Value {
        let id = self.next.replace(self.next.get() + 1);
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.borrow_mut().write_all(format!("{message}\0").as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.receive(method, deadline);
            if answer["id"] == id {
                assert_eq!(answer.get("error"), None, "{method}");
                return answer["result"].clone();
            }
            self.events.borrow_mut().push(answer);
        }
    }

    fn wait_for_event(&self, method: &str) {
        let deadline = Instant::now() + PATIENCE;
        let is_here = || self.events.borrow().iter().any(|event| event["method"] == method);
        while !is_here() {
            let event = self.receive(method, deadline);
            self.events.borrow_mut().push(event);
        }
    }

    fn receive(&self, what: &str, deadline: Instant) -> Value {
        match self.from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => panic!("the browser says nothing about {what}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the browser ended before {what}"),
        }
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test must say so where it is seen")]
fn is_installed() -> bool {
    let is_there = Command::new("chromium").arg("--version").output().is_ok();
    if !is_there {
        let skip = std::env::var_os("KPNG_SKIP_BROWSER").is_some_and(|value| value == "1");
        assert!(skip, "there is no chromium; hack/test.sh installs it, KPNG_SKIP_BROWSER=1 skips");
        eprintln!("skipped without chromium");
    }
    is_there
}

impl Drop for Browser {
    /// Its other processes end with the first; it removes what it wrote.
    fn drop(&mut self) {
        let message = json!({ "id": 0, "method": "Browser.close" });
        self.to.get_mut().write_all(format!("{message}\0").as_bytes()).ok();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
