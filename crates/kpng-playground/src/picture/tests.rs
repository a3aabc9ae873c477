use expect_test::{Expect, expect};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;

fn example() -> Picture {
    let counts = |answers: &[(&str, u64)], refused, silent, masqueraded| Counts {
        answers: answers.iter().map(|(pod, times)| ((*pod).to_owned(), *times)).collect(),
        refused,
        silent,
        masqueraded,
        wrong: 0,
    };
    let row = |service: &str, from, to: &str, counts| Row {
        service: service.to_owned(),
        from,
        to: to.to_owned(),
        counts,
    };
    let pod = |name: &str, address: &str, here| (name.to_owned(), address.to_owned(), here);
    Picture {
        backend: "nft".to_owned(),
        step: "tour 1/3".to_owned(),
        title: "Three Services on one node".to_owned(),
        look: "Nobody serves `empty`: refused at once.".to_owned(),
        file: "/proc/4711/root/run/cluster.yaml".to_owned(),
        problem: None,
        rows: vec![
            row("default/empty", "visitor", "172.30.0.12:80 TCP", counts(&[], 7, 0, 0)),
            row(
                "default/web",
                "visitor",
                "172.30.0.10:80 TCP",
                counts(&[("web-0", 4), ("web-1", 3)], 0, 0, 0),
            ),
            row("default/web", "client", "192.168.0.2:30080 TCP", counts(&[("web-1", 7)], 0, 0, 7)),
            row(
                "default/shop",
                "stranger",
                "198.51.100.1:80 TCP",
                Counts { wrong: 1, ..counts(&[], 0, 2, 0) },
            ),
        ],
        pods: vec![
            pod("web-0", "10.180.0.1", true),
            pod("web-1", "10.180.0.2", true),
            pod("there-0", "10.180.1.1", false),
        ],
        log: vec!["pod web-1 is there".to_owned(), "default/web in force after 0.7 ms".to_owned()],
        said: 2,
    }
}

fn check(picture: &Picture, help: bool, expected: Expect) {
    check_size(picture, (100, 24), help, expected);
}

fn check_size(picture: &Picture, (width, height): (u16, u16), help: bool, expected: Expect) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, picture, help)).unwrap();
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let line: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    expected.assert_eq(&text);
}

#[test]
fn the_picture_shows_who_asks_whom_and_what_comes_of_it() {
    check(
        &example(),
        false,
        expect![[r#"
        kpng playground  backend nft  tour 1/3
        Three Services on one node
        Nobody serves `empty`: refused at once.

         connections ───────────────────────────────────────────────────────────────────────────────────────
        service              from     to                         answered by                   source
        default/empty        visitor  172.30.0.12:80 TCP         refused 7                                 ✓
        default/web          visitor  172.30.0.10:80 TCP         web-0 4  web-1 3              kept        ✓
        default/web          client   192.168.0.2:30080 TCP      web-1 7                       masqueraded ✓
        default/shop         stranger 198.51.100.1:80 TCP        dropped 2                                 ✗




         pods ──────────────────────────────────────────────────────────────────────────────────────────────
        web-0  10.180.0.1                                 there-0  10.180.1.1  on another node
        web-1  10.180.0.2
         what happened ─────────────────────────────────────────────────────────────────────────────────────
        pod web-1 is there
        default/web in force after 0.7 ms


        edit /proc/4711/root/run/cluster.yaml and see
        q quit   n next step   r restart   h help
    "#]],
    );
}

#[test]
fn a_problem_stands_out() {
    let problem = "cluster.yaml:7:3: spec: unknown key; the last good state stays in force";
    check(
        &Picture { problem: Some(problem.to_owned()), ..example() },
        false,
        expect![[r#"
        kpng playground  backend nft  tour 1/3
        Three Services on one node
        Nobody serves `empty`: refused at once.

         connections ───────────────────────────────────────────────────────────────────────────────────────
        service              from     to                         answered by                   source
        default/empty        visitor  172.30.0.12:80 TCP         refused 7                                 ✓
        default/web          visitor  172.30.0.10:80 TCP         web-0 4  web-1 3              kept        ✓
        default/web          client   192.168.0.2:30080 TCP      web-1 7                       masqueraded ✓
        default/shop         stranger 198.51.100.1:80 TCP        dropped 2                                 ✗


         pods ──────────────────────────────────────────────────────────────────────────────────────────────
        web-0  10.180.0.1                                 there-0  10.180.1.1  on another node
        web-1  10.180.0.2
         what happened ─────────────────────────────────────────────────────────────────────────────────────
        pod web-1 is there
        default/web in force after 0.7 ms


        ✗ cluster.yaml:7:3: spec: unknown key; the last good state stays in force

        edit /proc/4711/root/run/cluster.yaml and see
        q quit   n next step   r restart   h help
    "#]],
    );
}

#[test]
fn help_is_drawn_over_it() {
    check(
        &example(),
        true,
        expect![[r#"
        kpng playground  backend nft  tour 1/3
        Three Services on one node
        Nobody serves `empty`: refused at once.

         connection┌ help ──────────────────────────────────────────────────────────────────────┐───────────
        service    │Each line of the table is asked several times a second, with real packets.  │urce
        default/emp│                                                                            │          ✓
        default/web│  visitor   a pod of the node that only asks                                │pt        ✓
        default/web│  client    a host outside, 203.0.113.2                                     │squeraded ✓
        default/sho│  stranger  the same host, as 203.0.113.130                                 │          ✗
                   │                                                                            │
                   │  source    kept: the pod sees who asks                                     │
                   │            masqueraded (masq.): it sees the node                           │
                   │  ✓ ✗       as the Services say, or not                                     │
         pods ─────│                                                                            │───────────
        web-0  10.1│In another terminal: kpng playground shell client                           │
        web-1  10.1│In it, for instance: cat < /dev/tcp/172.30.0.10/80                          │
         what happe│                                                                            │───────────
        pod web-1 i│q quit   n next step   r restart   h close this                             │
        default/web└────────────────────────────────────────────────────────────────────────────┘


        edit /proc/4711/root/run/cluster.yaml and see
        q quit   n next step   r restart   h help
    "#]],
    );
}

#[test]
fn a_terminal_may_be_tiny() {
    let mut terminal = Terminal::new(TestBackend::new(5, 3)).unwrap();
    terminal.draw(|frame| draw(frame, &example(), true)).unwrap();
}

#[test]
fn in_eighty_columns_names_and_counts_are_all_there() {
    let mut picture = example();
    let counts = &mut picture.rows[1].counts.answers;
    *counts =
        [("web-0", 122), ("web-1", 123), ("web-2", 124)].map(|(n, c)| (n.to_owned(), c)).into();
    check_size(
        &picture,
        (80, 24),
        false,
        expect![[r#"
        kpng playground  backend nft  tour 1/3
        Three Services on one node
        Nobody serves `empty`: refused at once.

         connections ───────────────────────────────────────────────────────────────────
        service from     to                    answered by                      source
        empty   visitor  172.30.0.12:80 TCP    refused 7                               ✓
        web     visitor  172.30.0.10:80 TCP    web-0 122 web-1 123 web-2 124    kept   ✓
        web     client   192.168.0.2:30080 TCP web-1 7                          masq.  ✓
        shop    stranger 198.51.100.1:80 TCP   dropped 2                               ✗




         pods ──────────────────────────────────────────────────────────────────────────
        web-0  10.180.0.1                       there-0  10.180.1.1  on another node
        web-1  10.180.0.2
         what happened ─────────────────────────────────────────────────────────────────
        pod web-1 is there
        default/web in force after 0.7 ms


        edit /proc/4711/root/run/cluster.yaml and see
        q quit   n next step   r restart   h help
    "#]],
    );
}

#[test]
fn where_there_is_little_room_connections_and_problems_are_shown() {
    let problem = Some("cluster.yaml:3:1: there is no such field".to_owned());
    check_size(
        &Picture { problem, ..example() },
        (60, 14),
        false,
        expect![[r#"
        kpng playground  backend nft  tour 1/3
        Three Services on one node
        Nobody serves `empty`: refused at once.

         connections ───────────────────────────────────────────────
        service from     to                    answered by  source
        empty   visitor  172.30.0.12:80 TCP    refused 7           ✓
        web     visitor  172.30.0.10:80 TCP    web-0 4 web- kept   ✓
        web     client   192.168.0.2:30080 TCP web-1 7      masq.  ✓
        shop    stranger 198.51.100.1:80 TCP   dropped 2           ✗
        ✗ cluster.yaml:3:1: there is no such field

        edit /proc/4711/root/run/cluster.yaml and see
        q quit   n next step   r restart   h help
    "#]],
    );
}
