//! What is said again and again is logged now and then: a broken agent tries for ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long nothing more is said about the same.
const QUIET: Duration = Duration::from_secs(60);

/// About how many things at most. Beyond it, what is new is told as part of [`Complaints::say`]'s count about the next that is heard.
const MOST: usize = 1024;

/// What has been complained about.
#[derive(Debug, Default)]
pub struct Complaints {
    said: HashMap<String, Said>,
    /// What was not said for want of room.
    beyond: u64,
}

#[derive(Debug)]
struct Said {
    last: Instant,
    since: u64,
}

impl Complaints {
    /// Whether to complain about this now: then, how often it was kept back since the last time.
    pub fn say(&mut self, about: String, now: Instant) -> Option<u64> {
        if let Some(said) = self.said.get_mut(&about) {
            if now.duration_since(said.last) < QUIET {
                said.since += 1;
                return None;
            }
            said.last = now;
            return Some(std::mem::take(&mut said.since) + std::mem::take(&mut self.beyond));
        }
        if self.said.len() >= MOST {
            self.said.retain(|_, said| now.duration_since(said.last) < QUIET);
        }
        if self.said.len() >= MOST {
            self.beyond += 1;
            return None;
        }
        self.said.insert(about, Said { last: now, since: 0 });
        Some(std::mem::take(&mut self.beyond))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_with_how_often_it_was() {
        let (mut complaints, begin) = (Complaints::default(), Instant::now());
        let mut say =
            |about: &str, after: u64| complaints.say(about.to_owned(), begin + Duration::from_secs(after));
        assert_eq!(say("n1", 0), Some(0));
        assert_eq!((say("n1", 1), say("n1", 59)), (None, None));
        assert_eq!(say("n2", 1), Some(0));
        assert_eq!(say("n1", 60), Some(2));
        assert_eq!(say("n1", 61), None);
    }

    #[test]
    fn it_remembers_so_much_and_no_more() {
        let (mut complaints, begin) = (Complaints::default(), Instant::now());
        for number in 0..2 * MOST {
            let said = complaints.say(number.to_string(), begin);
            assert_eq!(said.is_some(), number < MOST);
        }
        assert_eq!(complaints.said.len(), MOST);
        assert_eq!(complaints.say("later".to_owned(), begin + QUIET), Some(MOST as u64));
        assert_eq!(complaints.said.len(), 1);
    }
}
