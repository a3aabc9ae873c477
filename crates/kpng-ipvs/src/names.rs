//! Every name that is written into the kernel, and what the sets are.
//!
//! Names are stable across versions: operators and other programs read them, and a restarted
//! process finds its objects by them. They are listed in this crate's README.

use kpng_core::model::Family;
use kpng_core::plan::Origin;
use kpng_linux::nft::{Data, Field, SetDef, Table, TableFamily};

/// The name of our tables, one in `ip` and one in `ip6`.
pub const TABLE: &str = "kpng-ipvs";

/// The name of the dummy link that has the virtual addresses.
pub const LINK: &str = "kpng-ipvs0";

pub(crate) const FILTER_INPUT: &str = "filter-input";
pub(crate) const FILTER_FORWARD: &str = "filter-forward";
pub(crate) const FILTER_OUTPUT: &str = "filter-output";
pub(crate) const MARK_INPUT: &str = "mark-input";
pub(crate) const MARK_OUTPUT: &str = "mark-output";
pub(crate) const MARK_POSTROUTING: &str = "mark-postrouting";
pub(crate) const NAT_POSTROUTING: &str = "nat-postrouting";
pub(crate) const REFUSED: &str = "refused-services";
pub(crate) const MARKS: &str = "marked-services";
pub(crate) const CLOSED: &str = "cluster-ips-check";
pub(crate) const REJECT: &str = "reject-chain";

/// The table of a family.
pub(crate) fn table(family: Family) -> Table {
    match family {
        Family::V4 => Table::new(TableFamily::Ip, TABLE),
        Family::V6 => Table::new(TableFamily::Ip6, TABLE),
    }
}

/// Where packets come from, in the order of [`kpng_core::plan::Route::actions`].
pub(crate) const ORIGINS: [Origin; 3] = [Origin::Pod, Origin::Node, Origin::Outside];

/// The chain that refuses packets of an origin.
pub(crate) fn refused(from: Origin) -> &'static str {
    match from {
        Origin::Pod => "refused-from-pods",
        Origin::Node => "refused-from-node",
        Origin::Outside => "refused-from-outside",
    }
}

/// The chain that marks packets of an origin.
pub(crate) fn marked(from: Origin) -> &'static str {
    match from {
        Origin::Pod => "marked-from-pods",
        Origin::Node => "marked-from-node",
        Origin::Outside => "marked-from-outside",
    }
}

/// Our sets and maps: a constant number of them, whatever the number of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Set {
    /// Frontends that forward packets of some origin at least.
    Services,
    /// Frontends that admit only permitted sources.
    Guarded,
    /// The same: counts who was dropped.
    Strangers,
    /// Who may reach a frontend that not everybody may reach.
    SourceRanges,
    /// Frontends that refuse packets of an origin.
    Rejected(Origin),
    /// Frontends that drop packets of an origin.
    Dropped(Origin),
    /// Frontends whose packets of an origin are masqueraded.
    Masqueraded(Origin),
    /// Frontends whose packets of an origin go to a firewall-mark service, and its mark.
    Marks(Origin),
    /// All cluster IPs.
    ClusterIps,
    /// The virtual addresses, which are on our link.
    ServiceIps,
    /// Addresses that the node has anyway, and at which there are services.
    NodeIps,
    /// The addresses of all endpoints, each with itself.
    Hairpin,
    /// Where pods have their addresses.
    PodCidrs,
    /// Where cluster IPs come from.
    ServiceCidrs,
}

impl Set {
    /// All sets, in the order in which they are declared.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let by_origin = ORIGINS.into_iter().flat_map(|from| {
            [Self::Rejected(from), Self::Dropped(from), Self::Masqueraded(from), Self::Marks(from)]
        });
        [Self::Services, Self::Guarded, Self::Strangers, Self::SourceRanges]
            .into_iter()
            .chain(by_origin)
            .chain([
                Self::ClusterIps,
                Self::ServiceIps,
                Self::NodeIps,
                Self::Hairpin,
                Self::PodCidrs,
                Self::ServiceCidrs,
            ])
    }

    pub(crate) fn name(self) -> &'static str {
        use Origin::{Node, Outside, Pod};
        match self {
            Self::Services => "services",
            Self::Guarded => "guarded-services",
            Self::Strangers => "strangers",
            Self::SourceRanges => "source-ranges",
            Self::Rejected(Pod) => "rejected-from-pods",
            Self::Rejected(Node) => "rejected-from-node",
            Self::Rejected(Outside) => "rejected-from-outside",
            Self::Dropped(Pod) => "dropped-from-pods",
            Self::Dropped(Node) => "dropped-from-node",
            Self::Dropped(Outside) => "dropped-from-outside",
            Self::Masqueraded(Pod) => "masqueraded-from-pods",
            Self::Masqueraded(Node) => "masqueraded-from-node",
            Self::Masqueraded(Outside) => "masqueraded-from-outside",
            Self::Marks(Pod) => "marks-from-pods",
            Self::Marks(Node) => "marks-from-node",
            Self::Marks(Outside) => "marks-from-outside",
            Self::ClusterIps => "cluster-ips",
            Self::ServiceIps => "service-ips",
            Self::NodeIps => "node-ips",
            Self::Hairpin => "hairpin",
            Self::PodCidrs => "pod-cidrs",
            Self::ServiceCidrs => "service-cidrs",
        }
    }

    /// The set with this name.
    pub(crate) fn named(name: &str) -> Self {
        Self::all().find(|set| set.name() == name).expect("elements are of sets of ours")
    }

    /// The definition.
    pub(crate) fn def(self) -> SetDef {
        let daddr = || vec![Field::Daddr];
        let mark = || Data::Fields(vec![Field::Mark]);
        let (key, data, comment) = match self {
            Self::Services => (frontend_key(), Data::None, "forwarded"),
            Self::Guarded => (frontend_key(), Data::None, "see source-ranges"),
            Self::Strangers => (frontend_key(), Data::None, "the same: counts who was dropped"),
            Self::SourceRanges => (guard_key(), Data::None, "frontend . permitted source"),
            Self::Rejected(_) => (frontend_key(), Data::None, "rejected"),
            Self::Dropped(_) => (frontend_key(), Data::None, "dropped"),
            Self::Masqueraded(_) => (frontend_key(), Data::None, "masqueraded"),
            Self::Marks(_) => (frontend_key(), mark(), "frontend : firewall-mark service"),
            Self::ClusterIps => (daddr(), Data::None, "closed but for their services"),
            Self::ServiceIps => (daddr(), Data::None, "on link kpng-ipvs0"),
            Self::NodeIps => (daddr(), Data::None, "the node's, with services"),
            Self::Hairpin => (vec![Field::Saddr, Field::Daddr], Data::None, "endpoints, twice"),
            Self::PodCidrs => (vec![Field::Saddr], Data::None, "addresses of pods"),
            Self::ServiceCidrs => (daddr(), Data::None, "addresses of services"),
        };
        let interval = matches!(self, Self::SourceRanges | Self::PodCidrs | Self::ServiceCidrs);
        let counted = matches!(self, Self::Rejected(_) | Self::Dropped(_) | Self::Strangers);
        SetDef { name: self.name(), key, data, interval, dynamic: None, counted, comment }
    }
}

/// What identifies a frontend.
pub(crate) fn frontend_key() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

/// A frontend, and who comes.
pub(crate) fn guard_key() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport, Field::Saddr]
}
