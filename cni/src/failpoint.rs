//! Points at which a process can be made to die, for the tests that look at what it leaves behind.
//!
//! Only in builds with debug assertions: a released binary has none of this. There, a process whose environment says
//! `MOAT_DIE_AT=point` ends at that point as by `kill -9`: no destructor runs, nothing is flushed.

/// The variable that names the point.
pub const VARIABLE: &str = "MOAT_DIE_AT";

/// The process has come to `point`; it goes no further if that is where it is to die.
#[inline]
pub fn reach(point: &str) {
    #[cfg(debug_assertions)]
    if die_at() == Some(point) {
        use rustix::process::{Signal, getpid, kill_process};
        // It cannot be refused: the process is our own. Other threads stop with this one.
        let _ = kill_process(getpid(), Signal::KILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// Whether `point` is where the process is to die: for points that need something done before.
#[inline]
pub fn is_next(point: &str) -> bool {
    #[cfg(debug_assertions)]
    return die_at() == Some(point);
    #[cfg(not(debug_assertions))]
    {
        let _ = point;
        false
    }
}

#[cfg(debug_assertions)]
fn die_at() -> Option<&'static str> {
    static POINT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    POINT.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref()
}
