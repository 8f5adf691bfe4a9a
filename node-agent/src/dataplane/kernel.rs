//! The edge to the kernel: sends plans, lists our tables, finds out what the kernel can do.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moat_nfnetlink::EncodeError;
use moat_nfnetlink::nft::{self, Batch, Family, Socket, TableId, UserData, table_flags, userdata};
use tracing::{debug, info, warn};

use super::adopt::{FoundSet, FoundTable, adopt, fill};
use super::culprits::{Failed, spot};
use super::error::Error;
use super::layout::{FORWARD, Table, USERDATA_VERSION, VERSION};
use super::op::{Op, Plan};
use super::state::Content;
use super::stats::Stats;
use crate::guard::{Keeper, Launch};

/// How often a listing that somebody else's commit came into is made again.
const LISTINGS: usize = 20;

/// How long a start waits for the agent before it to go.
pub(crate) const PREDECESSOR: Duration = Duration::from_secs(2);

/// Our tables in the kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    socket: Socket,
    /// The flags of our tables: owner and persist, or none.
    flags: u32,
    /// Listings since the start.
    pub(crate) listings: u64,
    /// Who sees to it that the socket outlives us. Behind the socket: the lease ends when we have done with it.
    _keeper: Option<Keeper>,
}

/// What a listing of our tables says about them as a whole.
enum Standing {
    /// It is not there.
    Missing,
    /// It is ours to adopt.
    Adoptable,
    /// It is not moat's, or has other flags: it can only be replaced.
    Foreign,
}

impl Kernel {
    /// Opens a socket in the network namespace of the calling thread, and finds out whether tables can have an owner. If so,
    /// and there is to be a guard, goes on with the socket that it keeps, or has it keep this one.
    pub(crate) fn open(want_owner: bool, guard: Option<Launch>, stats: &Arc<Stats>) -> Result<Self, Error> {
        let mut socket = Socket::open()?;
        let owned = want_owner && can_own(&mut socket)?;
        let flags = if owned { table_flags::OWNER | table_flags::PERSIST } else { 0 };
        let keeper = match guard.filter(|_| owned) {
            Some(launch) => Some(guarded(launch, &mut socket, stats.clone())?),
            None => None,
        };
        Ok(Self { socket, flags, listings: 0, _keeper: keeper })
    }

    /// Whether nobody else can change our tables.
    pub(crate) fn owns(&self) -> bool {
        self.flags & table_flags::OWNER != 0
    }

    /// The port id that our commits carry.
    pub(crate) fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Carries a plan out.
    pub(crate) fn carry_out(&mut self, plan: Plan) -> Result<(), Failed> {
        plan.transactions().iter().try_for_each(|ops| self.commit(ops, None))
    }

    /// Makes our tables hold this content and nothing else, whatever they hold now. It may be asked for more than once, and
    /// is not kept: there may be a hundred thousand addresses in it.
    pub(crate) fn restore(&mut self, content: impl Fn() -> Content) -> Result<(), Failed> {
        let mut tries = 0;
        loop {
            tries += 1;
            // A listing is good as long as nobody commits. With an owner nobody can commit to our tables at all;
            // else the batch says which generation it was made for, but does not wait for silence for ever.
            let generation = self.socket.generation()?;
            let guard = (!self.owns() && tries < LISTINGS).then_some(generation);
            match self.restore_once(&content, guard) {
                Err(Failed { error: Error::Kernel(e), .. })
                    if matches!(*e, moat_nfnetlink::Error::Restart { .. }) =>
                {
                    debug!(tries, "somebody else committed while the tables were listed; listing again");
                }
                other => return other,
            }
        }
    }

    fn restore_once(&mut self, content: &impl Fn() -> Content, guard: Option<u32>) -> Result<(), Failed> {
        self.listings += 1;
        let mut all = Vec::new();
        for table in Table::ALL {
            all.push((table, self.standing(table)?));
        }
        let foreign = all.iter().any(|(_, standing)| matches!(standing, Standing::Foreign));
        let missing: Vec<Table> =
            all.iter().filter(|(_, s)| matches!(s, Standing::Missing)).map(|(table, _)| *table).collect();
        // An agent of another version may have had fewer tables: what it had goes on.
        let whole = foreign || missing.len() == Table::ALL.len();
        if !whole {
            if self.owns() {
                // First ours, then listed: nobody changes it in between.
                let take_over: Vec<Op> = Table::ALL.map(|t| Op::AddTable(self.declaration(t))).into();
                self.commit(&take_over, None)?;
            } else if !missing.is_empty() {
                let add: Vec<Op> = missing.into_iter().map(|t| Op::AddTable(self.declaration(t))).collect();
                self.commit(&add, guard)?;
            }
            let mut found = BTreeMap::new();
            for table in Table::ALL {
                found.insert(table, self.list(table)?);
            }
            if let Some(plan) = adopt(found, content()) {
                match self.adopted(plan, guard) {
                    // Nothing that was to come is at fault, so something that is there must be in the way.
                    Err(Failed { error: Error::Kernel(e), spots }) if spots.is_empty() && in_the_way(&e) => {
                        warn!("the tables cannot be made right piece by piece: {:#}", anyhow::Error::new(e));
                    }
                    other => return other,
                }
            }
        }
        let mut ops = Vec::new();
        for (table, standing) in all {
            if !matches!(standing, Standing::Missing) {
                info!(table = %table.id(), "replacing the table as a whole");
                ops.push(Op::DeleteTable(table));
            }
            ops.push(Op::AddTable(self.declaration(table)));
        }
        ops.extend(fill(content()));
        self.commit(&ops, guard)
    }

    fn adopted(&mut self, plan: Plan, guard: Option<u32>) -> Result<(), Failed> {
        // Only the first of two is guarded: our own first changes the generation.
        for (index, ops) in plan.transactions().iter().enumerate() {
            self.commit(ops, guard.filter(|_| index == 0))?;
        }
        Ok(())
    }

    fn declaration(&self, table: Table) -> nft::Table {
        let userdata = UserData::new()
            .comment("moat: NetworkPolicy; changes are undone")
            .with(USERDATA_VERSION, [VERSION]);
        nft::Table::new(table.id()).flags(self.flags).userdata(userdata)
    }

    fn standing(&mut self, table: Table) -> Result<Standing, Error> {
        let id = table.id();
        let tables = self.socket.tables(Some(id.family))?;
        let Some(info) = tables.items.into_iter().find(|t| t.id == id) else {
            return Ok(Standing::Missing);
        };
        if let Some(owner) = info.owner.filter(|o| *o != self.port_id()) {
            return Err(Error::Owned { table: id, owner });
        }
        // An orphan has lost the owner flag, and gets it back by being taken over.
        let same_flags = (info.flags ^ self.flags) & !table_flags::OWNER == 0;
        let Some(made_by) = userdata::find(&info.userdata, USERDATA_VERSION).filter(|_| same_flags) else {
            return Ok(Standing::Foreign);
        };
        if table == Table::Inet && self.listings == 1 {
            // Who has filled it since. The kernel does not let the table's own data be changed.
            let first = self.socket.rules(&id, Some(FORWARD))?.items.into_iter().next();
            let data = first.map(|rule| rule.userdata).unwrap_or_default();
            let filled_by = userdata::find(&data, USERDATA_VERSION).unwrap_or(made_by);
            match filled_by {
                [VERSION] => {}
                [older] if *older < VERSION => {
                    info!(layout = older, ours = VERSION, "taking over the tables of an older moat-agent");
                }
                newer => warn!(
                    layout = ?newer,
                    ours = VERSION,
                    "taking over the tables of a newer moat-agent; what this one does not know is removed"
                ),
            }
        }
        Ok(Standing::Adoptable)
    }

    fn list(&mut self, table: Table) -> Result<FoundTable, Error> {
        let id = table.id();
        let mut found = FoundTable::default();
        for chain in self.socket.chains(&id)?.items {
            found.chains.insert(chain.name, chain.base);
        }
        found.counters.extend(self.socket.counters(&id)?.items.into_iter().map(|counter| counter.name));
        for set in self.socket.sets(&id)?.items.into_iter().filter(|s| !s.is_anonymous()) {
            let content = match set.declaration() {
                Some(declaration) => Some(self.content(&id, declaration)?),
                None => None,
            };
            found.sets.insert(set.name, content);
        }
        Ok(found)
    }

    fn content(&mut self, table: &TableId, declaration: nft::Set) -> Result<FoundSet, Error> {
        let mut elements = Some(Vec::new());
        if declaration.is_dynamic() {
            // What rules put there is the kernel's own.
            return Ok(FoundSet { declaration, elements });
        }
        self.socket.elements(table, declaration.name(), |element| {
            match (element.element(&declaration), &mut elements) {
                (Some(element), Some(all)) => all.push(element),
                (None, _) => elements = None,
                (Some(_), None) => {}
            }
        })?;
        Ok(FoundSet { declaration, elements })
    }

    fn commit(&mut self, ops: &[Op], guard: Option<u32>) -> Result<(), Failed> {
        let mut batch = Batch::new();
        // Where each operation's messages end.
        let mut ends = Vec::with_capacity(ops.len());
        for op in ops {
            op.encode(&mut batch).map_err(|e| Failed {
                error: e.into(),
                spots: spot(op, None, false).into_iter().collect(),
            })?;
            ends.push(batch.len());
        }
        let Err(error) = self.socket.send(&batch, guard) else { return Ok(()) };
        let mut spots = Vec::new();
        if let moat_nfnetlink::Error::Refused(refusal) = &error {
            for failure in std::iter::once(&refusal.first).chain(&refusal.rest) {
                let index = ends.partition_point(|end| *end <= failure.index);
                let first = index.checked_sub(1).map_or(0, |before| ends[before]);
                // Of a long list only the first message's elements can be told.
                let element = failure.element.filter(|_| failure.index == first);
                let follows = failure.kind() == std::io::ErrorKind::NotFound;
                spots.extend(ops.get(index).and_then(|op| spot(op, element, follows)));
            }
        }
        Err(Failed { error: error.into(), spots })
    }
}

/// Whether the kernel refused a change of what is there, and not for want of memory or of somebody's silence.
fn in_the_way(error: &moat_nfnetlink::Error) -> bool {
    matches!(error, moat_nfnetlink::Error::Refused(_))
}

/// Puts what the guard keeps in the socket's place, if it keeps anything, and has it keep the socket from now on.
fn guarded(launch: Launch, socket: &mut Socket, stats: Arc<Stats>) -> Result<Keeper, Error> {
    let begin = Instant::now();
    let mut taken = loop {
        match launch.take() {
            // A predecessor that was told to end may not be quite gone.
            Err(e) if e.is_busy() && begin.elapsed() < PREDECESSOR => std::thread::sleep(PREDECESSOR / 100),
            Err(e) if e.is_busy() => return Err(Error::Guard(Arc::new(e))),
            other => break other,
        }
    };
    if let Some(descriptor) = taken.as_mut().ok().and_then(|taken| taken.descriptor.take()) {
        *socket = Socket::take_over(descriptor).map_err(|e| match e {
            moat_nfnetlink::Error::OtherNetwork => Error::GuardElsewhere { run_dir: launch.run_dir.clone() },
            other => other.into(),
        })?;
        info!("going on with the socket that the guard kept");
    }
    let thread_failed = |e| Error::Thread(Arc::new(e));
    let kept = socket.as_fd().try_clone_to_owned().map_err(thread_failed)?;
    let tell = move |kept: bool| Stats::set(&stats.guard, kept.into());
    Keeper::start(launch, taken, kept, tell).map_err(thread_failed)
}

/// Whether this kernel lets a table have an owner and outlive it. Tried on a table of another name.
fn can_own(socket: &mut Socket) -> Result<bool, Error> {
    let id = TableId::new(Family::Inet, format!("moat-probe-{}", socket.port_id()));
    let probe = nft::Table::new(id.clone()).flags(table_flags::OWNER | table_flags::PERSIST);
    let mut batch = Batch::new();
    let built: Result<(), EncodeError> = batch.create_table(&probe).and_then(|()| batch.delete_table(&id));
    built?;
    match socket.send(&batch, None) {
        Ok(_) => Ok(true),
        Err(error) if refuses_flags(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What kernels answer to flags that they do not know.
fn refuses_flags(error: &moat_nfnetlink::Error) -> bool {
    let refused = matches!(error, moat_nfnetlink::Error::Refused(_));
    let errno = error.errno().map(std::io::Error::from_raw_os_error);
    refused
        && errno.is_some_and(|e| {
            matches!(e.kind(), std::io::ErrorKind::Unsupported | std::io::ErrorKind::InvalidInput)
        })
}
