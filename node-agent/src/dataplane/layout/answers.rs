//! How answers are judged, while connections are judged anew.
//!
//! ```text
//! forward ─▶ answers       oifname ▶ answers_to       who opened the connection: its egress side
//!            answerer      iifname ▶ answers_from     who answers: its ingress side
//!            revoke        the mark is set            ▶ revoked
//! ```
//!
//! An answer is judged as the first packet of its connection would be. In `forward` it is that packet's mirror image: of
//! a first packet, destinations are translated by then and sources not yet; of an answer, that has been undone to its
//! destination and not yet to its source. So it goes from whom the first packet would go to, from that port, to whom it
//! would come from; and the same programs judge it with the two ends exchanged.

use moat_nfnetlink::nft::{Cmp, Rule, Source, Verdict};
use moat_policies::Direction;

use super::drops::DropReason;
use super::fixed::{itself, regular, revoke, veth};
use super::names::{self, PodSet, Table};
use super::{ChainRules, LayoutConfig};

/// The chains that answers go through before and behind the programs, each behind those that it leads to.
pub(super) fn chains(config: &LayoutConfig) -> [ChainRules; 3] {
    let unknown = |source, direction| {
        Rule::new().then(veth(source, Cmp::Eq)).verdict(DropReason::UnknownPod.on(direction).goto())
    };
    let mut denied = Vec::from(itself());
    denied.push(revoke(config));
    denied.push(Rule::new().verdict(Verdict::goto(DropReason::Revoked.as_str())));
    [
        regular(Table::Inet, names::REVOKE, denied),
        regular(
            Table::Inet,
            names::ANSWERER,
            vec![
                Rule::new().vmap([Source::IIFNAME], PodSet::AnswersFrom.name()),
                unknown(Source::IIFNAME, Direction::Egress),
                // Not left to the base chain's policy, as in `to-pod`.
                Rule::new().verdict(Verdict::Accept),
            ],
        ),
        regular(
            Table::Inet,
            names::ANSWERS,
            vec![
                Rule::new().vmap([Source::OIFNAME], PodSet::AnswersTo.name()),
                unknown(Source::OIFNAME, Direction::Ingress),
                Rule::new().verdict(Verdict::goto(names::ANSWERER)),
            ],
        ),
    ]
}
