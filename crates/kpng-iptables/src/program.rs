//! The programs `iptables-save` and `iptables-restore`: where they are, and how they are run.
//!
//! They exist twice, over nf_tables and over the older x_tables. What is written by one variant is
//! invisible to the other, so everybody on a node has to use the same.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kpng_core::model::Family;

use crate::Error;
use crate::names::{Table, program_prefix};
use crate::text::Found;

/// What `iptables` works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// x_tables, as before 2018.
    Legacy,
    /// nf_tables.
    Nft,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Nft];

    /// `legacy` or `nft`, as the programs are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }

    /// How many lines one input has at most, unless a single chain is longer. The time that
    /// `iptables-nft-restore` takes grows with the square of its input: 10,000 services in inputs
    /// of this size take 20 s, in one input 155 s; in smaller ones, reading what is there takes
    /// over. In legacy every input costs as much as the whole table.
    pub(crate) fn lines_per_input(self) -> usize {
        match self {
            Self::Legacy => 50_000,
            Self::Nft => 5_000,
        }
    }

    /// How many services are written at a time when nothing is there: what is important works
    /// before the rest is written.
    pub(crate) fn services_per_input(self) -> usize {
        self.lines_per_input() / 10
    }

    /// The variant of this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }
}

/// The programs of one variant.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) variant: Variant,
    families: Vec<(Family, Pair)>,
}

#[derive(Clone, Debug)]
struct Pair {
    save: PathBuf,
    restore: PathBuf,
}

/// How long a program waits for the lock that others hold.
const LOCK_SECONDS: &str = "5";

/// How much of a program's complaint is kept, in bytes.
const COMPLAINT: usize = 1000;

impl Programs {
    /// The programs of a variant, for the families that the kernel has.
    pub(crate) fn find(variant: Variant) -> Result<Self, Error> {
        let families = Family::ALL.into_iter().filter(|family| kernel_has(*family));
        let families = families.map(|family| {
            let save = find(family, variant, "save")?;
            Ok((family, Pair { save, restore: find(family, variant, "restore")? }))
        });
        Ok(Self { variant, families: families.collect::<Result<_, Error>>()? })
    }

    /// The programs of the variant that others use on this node, as the wrappers of
    /// kubernetes-sigs/iptables-wrappers find it: that in which kubelet has left a hint, or else
    /// that which has more rules.
    pub(crate) fn detect() -> Result<Self, Error> {
        let (nft, legacy) = match (Self::find(Variant::Nft), Self::find(Variant::Legacy)) {
            (Ok(nft), Ok(legacy)) => (nft, legacy),
            (Ok(only), Err(_)) | (Err(_), Ok(only)) => return Ok(only),
            (Err(error), Err(_)) => return Err(error),
        };
        if nft.saved(&["-t", "mangle"]).lines().any(is_hint) {
            return Ok(nft);
        }
        let in_legacy = legacy.saved(&[]);
        let rules = |saved: &str| saved.lines().filter(|line| line.starts_with('-')).count();
        if in_legacy.lines().any(is_hint) || rules(&in_legacy) > rules(&nft.saved(&[])) {
            return Ok(legacy);
        }
        Ok(nft)
    }

    /// The families that can be written.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().map(|(family, _)| *family)
    }

    /// What both families have, as far as it can be read.
    fn saved(&self, arguments: &[&str]) -> String {
        let read = |(_, pair): &(Family, Pair)| run(&pair.save, arguments, "").ok();
        self.families.iter().filter_map(read).map(|done| done.output).collect()
    }

    /// What the kernel holds of ours in a family.
    pub(crate) fn read(&self, family: Family) -> Result<Found, Error> {
        let mut found = Found::default();
        for table in Table::ALL {
            let done = run(&self.pair(family).save, &["-t", table.name()], "")?;
            found.add(table, &done.output);
        }
        Ok(found)
    }

    /// The same, without making tables that are not there.
    pub(crate) fn read_existing(&self, family: Family) -> Result<Found, Error> {
        let is_there = |table: Table| match self.variant {
            Variant::Nft => true,
            Variant::Legacy => {
                let names =
                    format!("/proc/thread-self/net/{}_tables_names", program_prefix(family));
                let names = fs::read_to_string(names).unwrap_or_default();
                names.lines().any(|name| name == table.name())
            }
        };
        if Table::ALL.into_iter().any(is_there) { self.read(family) } else { Ok(Found::default()) }
    }

    /// Gives `input` to `iptables-restore`. Returns the id that the process had.
    pub(crate) fn restore(&self, family: Family, input: &str) -> Result<u32, Error> {
        let arguments = ["--noflush", "-w", LOCK_SECONDS];
        run(&self.pair(family).restore, &arguments, input).map(|done| done.id)
    }

    /// Whether `iptables-restore` finds nothing wrong with `input`. Changes nothing.
    pub(crate) fn accepts(&self, family: Family, input: &str) -> Result<bool, Error> {
        let arguments = ["--noflush", "--test", "-w", LOCK_SECONDS];
        match run(&self.pair(family).restore, &arguments, input) {
            Ok(_) => Ok(true),
            Err(Error::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn pair(&self, family: Family) -> &Pair {
        let pair = self.families.iter().find(|(of, _)| *of == family);
        &pair.expect("only families that are there are asked for").1
    }
}

fn kernel_has(family: Family) -> bool {
    family == Family::V4 || Path::new("/proc/sys/net/ipv6").exists()
}

fn is_hint(line: &str) -> bool {
    let hints = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
    let chain = line.strip_prefix(':').and_then(|chain| chain.split(' ').next());
    chain.is_some_and(|chain| hints.contains(&chain))
}

/// Where a program is: under a name that tells the variant, or under the usual name if that is of
/// the variant.
fn find(family: Family, variant: Variant, what: &str) -> Result<PathBuf, Error> {
    let prefix = program_prefix(family);
    let exact = format!("{prefix}tables-{}-{what}", variant.name());
    if let Some(path) = in_path(&exact) {
        return Ok(path);
    }
    let usual = in_path(&format!("{prefix}tables-{what}"));
    let is_variant = |path: &PathBuf| {
        let version = run(path, &["--version"], "").map(|done| done.output).unwrap_or_default();
        version.contains("nf_tables") == (variant == Variant::Nft)
    };
    usual.filter(is_variant).ok_or(Error::NoProgram { name: exact })
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut files = std::env::split_paths(&path).chain(more).map(|directory| directory.join(name));
    files.find(|file| file.is_file())
}

struct Done {
    id: u32,
    output: String,
}

/// Runs a program to its end.
fn run(program: &Path, arguments: &[&str], input: &str) -> Result<Done, Error> {
    let fail = |source| Error::Start { program: program.to_owned(), source };
    #[expect(
        clippy::disallowed_methods,
        reason = "the iptables backend exists to run iptables-restore"
    )]
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(fail)?;
    let id = child.id();
    let mut stdin = child.stdin.take().expect("it is piped");
    // None of the programs prints much before it has read all.
    match stdin.write_all(input.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(fail(error)),
        _ => drop(stdin),
    }
    let output = child.wait_with_output().map_err(fail)?;
    if output.status.success() {
        return Ok(Done { id, output: String::from_utf8_lossy(&output.stdout).into_owned() });
    }
    Err(failure(program, arguments, input, &output))
}

fn failure(program: &Path, arguments: &[&str], input: &str, output: &Output) -> Error {
    let complaint = String::from_utf8_lossy(&output.stderr);
    let mut complaint = complaint.trim().replace('\n', " ");
    let line = blamed_line(&complaint).and_then(|number| input.lines().nth(number - 1));
    let line = line.map(|line| format!(" at {line:?}")).unwrap_or_default();
    while complaint.len() > COMPLAINT {
        complaint.pop();
    }
    let program = format!("{} {}", program.display(), arguments.join(" "));
    Error::Failed { program, status: output.status, complaint, line }
}

/// The number in `line 5 failed`, `line: 5`, or `line 5:`, from 1 on.
fn blamed_line(complaint: &str) -> Option<usize> {
    let (_, after) = complaint.split_once("line")?;
    let digits = after.trim_start_matches([':', ' ']);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blamed_line_is_found() {
        let check = |complaint, line| assert_eq!(blamed_line(complaint), line, "{complaint}");
        check("iptables-restore: line 2 failed", Some(2));
        check(
            "iptables v1.8.9 (nf_tables): line 15: RULE_APPEND failed (Invalid argument)",
            Some(15),
        );
        check("Error occurred at line: 3", Some(3));
        check("Another app is currently holding the xtables lock", None);
        check("line 0", None);
    }

    #[test]
    fn failures_name_program_and_line() {
        let error = run(Path::new("/bin/sh"), &["-c", "echo line 2 failed >&2; exit 3"], "a\nb\n");
        let error = error.err().map(|error| error.to_string());
        let expected = "/bin/sh -c echo line 2 failed >&2; exit 3 failed (exit status: 3) at \"b\": \
                        line 2 failed";
        assert_eq!(error.as_deref(), Some(expected));
        let missing = run(Path::new("/nowhere/iptables-restore"), &[], "");
        assert!(matches!(missing, Err(Error::Start { .. })));
    }
}
