//! What is written, as text.

use expect_test::{Expect, expect};
use kpng_core::model::Family;
use kpng_testkit::conformance::plan_of;

use crate::Config;
use crate::dry_run::chains;
use crate::names::Table;
use crate::render::RANK_HELPER;

/// The chains of one family, without those that are always the same.
fn check(cluster: &str, family: Family, expected: Expect) {
    let planner = plan_of(cluster);
    let chains = chains(planner.plan(), &Config::default(), family);
    let mut text = String::new();
    for table in Table::ALL {
        text += &format!("*{}\n", table.name());
        let of_table = |chain: &&crate::render::Chain| {
            chain.table == table && chain.rank != RANK_HELPER && !chain.rules.is_empty()
        };
        for chain in chains.iter().filter(of_table) {
            for rule in &chain.rules {
                text += &format!("-A {} {rule}\n", chain.name);
            }
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn policy_and_source_ranges() {
    check(
        "
        service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 etp=Local ranges=client-net
        slice t/web http=8080
          pod1
          remote1
        service t/none cluster=cluster.2 port=dns:53/UDP:30053
        ",
        Family::V4,
        expect![[r#"
            *filter
            -A KPNG-NODEPORTS -p udp -m comment --comment "t/none:dns" -m udp --dport 30053 -g KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.1/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.2/32 -p udp -m comment --comment "t/none:dns" -m udp --dport 53 -g KPNG-REJECT
            -A KPNG-VIPS -d 172.30.0.2/32 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-VIPS -d 198.51.100.1/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -j DROP
            -A KPNG-FORWARD -m conntrack --ctstate INVALID -j DROP
            -A KPNG-FORWARD -m conntrack --ctstate NEW -j KPNG-REFUSED
            -A KPNG-FORWARD -d 172.30.0.0/16 -m conntrack --ctstate NEW -j DROP
            -A KPNG-INPUT -m conntrack --ctstate NEW -j KPNG-REFUSED
            -A KPNG-OUTPUT -m conntrack --ctstate NEW -j KPNG-REFUSED
            -A KPNG-OUTPUT -d 172.30.0.0/16 -m conntrack --ctstate NEW -j DROP
            -A KPNG-REFUSED -m conntrack --ctstate DNAT -j RETURN
            -A KPNG-REFUSED -j KPNG-VIPS
            -A KPNG-REFUSED -d 192.168.0.2/32 -j KPNG-NODEPORTS
            *nat
            -A KPNG-E-GXFSIM6UDBRZI -s 10.180.1.1/32 -j KPNG-MARK
            -A KPNG-E-GXFSIM6UDBRZI -p tcp -m comment --comment "t/web:http" -j DNAT --to-destination 10.180.1.1:8080
            -A KPNG-E-XZA5BRSAWITYN -s 10.180.0.1/32 -j KPNG-MARK
            -A KPNG-E-XZA5BRSAWITYN -p tcp -m comment --comment "t/web:http" -j DNAT --to-destination 10.180.0.1:8080
            -A KPNG-P-QKSQ6SEET6Z2D -m comment --comment "t/web:http" -m statistic --mode random --probability 0.50000000000 -g KPNG-E-XZA5BRSAWITYN
            -A KPNG-P-QKSQ6SEET6Z2D -g KPNG-E-GXFSIM6UDBRZI
            -A KPNG-R-5QH3G3RZMGRWF -m comment --comment "t/web:http" -j KPNG-MARK-NO
            -A KPNG-R-5QH3G3RZMGRWF -g KPNG-P-QKSQ6SEET6Z2D
            -A KPNG-R-XCCMUKHT6ISYL -m comment --comment "t/web:http" -j KPNG-MARK-N
            -A KPNG-R-XCCMUKHT6ISYL -s 10.0.0.0/8 -g KPNG-P-QKSQ6SEET6Z2D
            -A KPNG-R-XCCMUKHT6ISYL -m addrtype --src-type LOCAL -g KPNG-P-QKSQ6SEET6Z2D
            -A KPNG-R-XCCMUKHT6ISYL -g KPNG-E-XZA5BRSAWITYN
            -A KPNG-G-JMKLCZGABTS4E -s 203.0.113.0/25 -m comment --comment "t/web:http" -g KPNG-R-XCCMUKHT6ISYL
            -A KPNG-G-JMKLCZGABTS4E -j ACCEPT
            -A KPNG-NODEPORTS -p tcp -m comment --comment "t/web:http" -m tcp --dport 30001 -g KPNG-R-XCCMUKHT6ISYL
            -A KPNG-NODEPORTS -p udp -m comment --comment "t/none:dns" -m udp --dport 30053 -j ACCEPT
            -A KPNG-VIPS -d 172.30.0.1/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -g KPNG-R-5QH3G3RZMGRWF
            -A KPNG-VIPS -d 172.30.0.2/32 -p udp -m comment --comment "t/none:dns" -m udp --dport 53 -j ACCEPT
            -A KPNG-VIPS -d 198.51.100.1/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -g KPNG-G-JMKLCZGABTS4E
            -A KPNG-OUTPUT -j KPNG-VIPS
            -A KPNG-OUTPUT -d 192.168.0.2/32 -j KPNG-NODEPORTS
            -A KPNG-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
            -A KPNG-POSTROUTING -j MARK --set-xmark 0x4000/0x0
            -A KPNG-POSTROUTING -j MASQUERADE --random-fully
            -A KPNG-PREROUTING -j KPNG-VIPS
            -A KPNG-PREROUTING -d 192.168.0.2/32 -j KPNG-NODEPORTS
        "#]],
    );
}

#[test]
fn affinity() {
    check(
        "
        node pods=interface localhost=yes
        service t/sticky cluster=cluster.1 port=:80 affinity=10800
        slice t/sticky =8080
          pod1
          pod2
          pod3
        ",
        Family::V6,
        expect![[r#"
            *filter
            -A KPNG-VIPS -d fd00:172:30::1/128 -m comment --comment "kpng: no such port" -m addrtype ! --dst-type LOCAL -j KPNG-REJECT
            -A KPNG-FORWARD -m conntrack --ctstate INVALID -j DROP
            -A KPNG-FORWARD -m conntrack --ctstate NEW -j KPNG-REFUSED
            -A KPNG-FORWARD -d fd00:172:30::/112 -m conntrack --ctstate NEW -j DROP
            -A KPNG-INPUT -m conntrack --ctstate NEW -j KPNG-REFUSED
            -A KPNG-OUTPUT -m conntrack --ctstate NEW -j KPNG-REFUSED
            -A KPNG-OUTPUT -d fd00:172:30::/112 -m conntrack --ctstate NEW -j DROP
            -A KPNG-REFUSED -m conntrack --ctstate DNAT -j RETURN
            -A KPNG-REFUSED -j KPNG-VIPS
            -A KPNG-REFUSED -d 2001:db8::1/128 -j KPNG-NODEPORTS
            *nat
            -A KPNG-E-57QJI4J36HNJA -s fd00:180::3/128 -j KPNG-MARK
            -A KPNG-E-57QJI4J36HNJA -p tcp -m comment --comment "t/sticky" -m recent --set --name KPNG-57QJI4J36HNJA --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination [fd00:180::3]:8080
            -A KPNG-E-OSZPOYPUD4A3E -s fd00:180::2/128 -j KPNG-MARK
            -A KPNG-E-OSZPOYPUD4A3E -p tcp -m comment --comment "t/sticky" -m recent --set --name KPNG-OSZPOYPUD4A3E --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination [fd00:180::2]:8080
            -A KPNG-E-T3X3NSHDRDSLB -s fd00:180::1/128 -j KPNG-MARK
            -A KPNG-E-T3X3NSHDRDSLB -p tcp -m comment --comment "t/sticky" -m recent --set --name KPNG-T3X3NSHDRDSLB --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination [fd00:180::1]:8080
            -A KPNG-P-7DEIPL5C4VQVC -m comment --comment "t/sticky" -m recent --rcheck --seconds 10800 --reap --name KPNG-T3X3NSHDRDSLB --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -g KPNG-E-T3X3NSHDRDSLB
            -A KPNG-P-7DEIPL5C4VQVC -m recent --rcheck --seconds 10800 --reap --name KPNG-OSZPOYPUD4A3E --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -g KPNG-E-OSZPOYPUD4A3E
            -A KPNG-P-7DEIPL5C4VQVC -m recent --rcheck --seconds 10800 --reap --name KPNG-57QJI4J36HNJA --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -g KPNG-E-57QJI4J36HNJA
            -A KPNG-P-7DEIPL5C4VQVC -m statistic --mode random --probability 0.33333333349 -g KPNG-E-T3X3NSHDRDSLB
            -A KPNG-P-7DEIPL5C4VQVC -m statistic --mode random --probability 0.50000000000 -g KPNG-E-OSZPOYPUD4A3E
            -A KPNG-P-7DEIPL5C4VQVC -g KPNG-E-57QJI4J36HNJA
            -A KPNG-R-GYVDQHKOPUAQM -m comment --comment "t/sticky" -j KPNG-MARK-NO
            -A KPNG-R-GYVDQHKOPUAQM -g KPNG-P-7DEIPL5C4VQVC
            -A KPNG-VIPS -d fd00:172:30::1/128 -p tcp -m comment --comment "t/sticky" -m tcp --dport 80 -g KPNG-R-GYVDQHKOPUAQM
            -A KPNG-OUTPUT -j KPNG-VIPS
            -A KPNG-OUTPUT -d 2001:db8::1/128 -j KPNG-NODEPORTS
            -A KPNG-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
            -A KPNG-POSTROUTING -j MARK --set-xmark 0x4000/0x0
            -A KPNG-POSTROUTING -j MASQUERADE --random-fully
            -A KPNG-PREROUTING -j KPNG-VIPS
            -A KPNG-PREROUTING -d 2001:db8::1/128 -j KPNG-NODEPORTS
        "#]],
    );
}

#[test]
fn names_from_the_cluster_cannot_escape_their_comment() {
    use kpng_core::model::NamespacedName;
    use kpng_core::plan::NodeFacts;

    let cluster = "service t/web cluster=cluster.1 port=http:80";
    let planner = plan_of(cluster);
    let plan = planner.plan().services().values().next().expect("there is one");
    let key = NamespacedName::new("t\"\n-F", "web $(x)");
    let chains = crate::render::service(&key, plan, &NodeFacts::default(), Family::V4);
    let (_, _, entry) = &chains.entries[0];
    assert_eq!(entry.comment, "t__-F/web___x_:http");
}
