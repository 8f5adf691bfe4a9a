//! Room for recursion: the YAML reader calls itself for each level of a document.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::thread;

/// Several times what a document of the greatest depth takes in a build without optimisation (measured: 30 to 40 KiB a level).
/// Only what is used of it becomes memory.
const STACK: usize = 16 << 20;

thread_local! {
    static DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread with a stack that is deep enough for any document, whatever the caller's is, and waits for it.
///
/// Whatever reads a document does so itself; who reads one after the other saves a thread each by doing all of it in here.
pub fn on_a_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if DEEP.get() {
        return work();
    }
    let deep = || {
        DEEP.set(true);
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("manifests".into()).stack_size(STACK);
        let running = thread.spawn_scoped(scope, deep).expect("the system starts a thread");
        running.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
