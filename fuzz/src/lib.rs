//! What all fuzz targets share: an input may cost so much and no more.
//!
//! ```text
//!   target ──▶ within_bounds(input, body) ──▶ the decoder: no panic, and what the target asserts of its answer
//!                     └─ processor time and memory at their peak
//! ```
//!
//! `cargo xtask fuzz` builds the targets with cargo-fuzz and runs each for a while, from the inputs in
//! `corpus/TARGET` and those of earlier runs.

use std::time::Duration;

use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The longest input that the bounds are stated for, in bytes; longer ones are passed over.
pub const LONGEST: usize = 64 << 10;
/// What an input may take of the processor, all threads together, in a build that counts every branch and checks every sum, as
/// fuzzing needs it. The longest found: 141 ms, for aliases that stand for as many values as a manifest's may.
pub const TIME: Duration = Duration::from_millis(250);

/// Runs `body` on an input; panics if it took more than [`TIME`] or more than `memory` bytes on top of what there was.
///
/// An input over the time is given two more tries, since a machine that is busy makes processors slow: only what is
/// always slow is a defect.
pub fn within_bounds(input: &[u8], memory: usize, body: impl Fn(&[u8])) {
    if input.len() > LONGEST {
        return;
    }
    let mut least = Duration::MAX;
    for _ in 0..3 {
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let started = processor_time();
        body(input);
        least = least.min(processor_time().saturating_sub(started));
        let taken = HEAP.peak_usage().saturating_sub(before);
        assert!(taken <= memory, "{} bytes of input took {taken} bytes of memory, of {memory}", input.len());
        if least <= TIME {
            return;
        }
    }
    panic!("{} bytes of input took {least:?} of processor time, of {TIME:?}", input.len());
}

/// The processor time of this process so far: a decoder may have a thread of its own.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}
