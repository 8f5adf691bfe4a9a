//! What the kernel refuses is closed, and nothing else: its culprits where it names them, else those without whom it does not refuse.

use std::collections::BTreeSet;

use moat_policies::NamespacedName;

use super::Writer;
use crate::dataplane::closed::{Reason, Subject};
use crate::dataplane::culprits::culprits;
use crate::dataplane::error::Error;
use crate::dataplane::state::State;
use crate::dataplane::stats::Stats;

/// How often one change's culprits are closed before the pods that it is about are tried by halves: each round closes one
/// culprit at least, and a transaction mostly names all of its culprits at once.
const ROUNDS: usize = 16;

impl Writer {
    /// Makes the tables right by listing them. If the kernel refuses something of it, that is closed, and the rest is put in
    /// force.
    pub(super) fn make_right(
        &mut self,
        state: &mut State,
        suspects: &BTreeSet<NamespacedName>,
    ) -> Result<(), Error> {
        // Whoever had the tables meanwhile may have let anything in.
        state.distrust();
        let mut round = 0;
        let result = loop {
            let failed = match self.resync(state) {
                Ok(()) => break Ok(()),
                Err(failed) => failed,
            };
            if !is_refusal(&failed.error) {
                break Err(failed.error);
            }
            Stats::count(&self.stats.refusals);
            let culprits = culprits(&failed.spots, state);
            round += 1;
            if culprits.is_empty() || round > ROUNDS {
                break self.halve(state, suspects, failed.error);
            }
            state.close(culprits, &reason(&failed.error));
        };
        match &result {
            Ok(()) => self.settled(),
            Err(error) => self.behind(error),
        }
        result
    }

    /// The kernel refuses, and does not say because of whom. Puts everybody in force without whom it does not refuse.
    fn halve(
        &mut self,
        state: &mut State,
        suspects: &BTreeSet<NamespacedName>,
        error: Error,
    ) -> Result<(), Error> {
        let why = reason(&error);
        let everybody: BTreeSet<NamespacedName> = state.local_pods().map(|(name, ..)| name.clone()).collect();
        let mut fault = error;
        for group in [suspects, &everybody] {
            let group: Vec<Subject> = group.intersection(&everybody).cloned().map(Subject::Pod).collect();
            if group.is_empty() {
                continue;
            }
            state.close(group.iter().cloned(), &why);
            match self.resync(state) {
                Ok(()) => return self.open_by_halves(state, group),
                Err(failed) => fault = failed.error,
            }
            // Nobody of them is at fault, or not they alone.
            state.open(&group);
        }
        Err(fault)
    }

    /// Opens closed pods again, all but those with whom the kernel refuses.
    fn open_by_halves(&mut self, state: &mut State, group: Vec<Subject>) -> Result<(), Error> {
        let mut groups = vec![group];
        while let Some(mut group) = groups.pop() {
            state.open(&group);
            let Err(failed) = self.resync(state) else { continue };
            if !is_refusal(&failed.error) {
                return Err(failed.error);
            }
            Stats::count(&self.stats.refusals);
            state.close(group.iter().cloned(), &reason(&failed.error));
            if group.len() > 1 {
                let second = group.split_off(group.len() / 2);
                groups.extend([second, group]);
            }
        }
        // What is closed now was closed by the last transaction that went through, or by one before it.
        self.resync(state).map_err(|failed| failed.error)
    }
}

/// Whether the kernel, or its protocol, did not take what we wanted of it; else it could not be asked, or the tables are
/// somebody else's.
fn is_refusal(error: &Error) -> bool {
    use moat_nfnetlink::Error as E;
    match error {
        Error::Kernel(e) => matches!(
            **e,
            E::Encode(_) | E::Refused(_) | E::Commit { .. } | E::TooLarge { .. } | E::Overrun { .. }
        ),
        _ => false,
    }
}

fn reason(error: &Error) -> Reason {
    Reason::Refused(format!("{:#}", anyhow::Error::new(error.clone())).into())
}
