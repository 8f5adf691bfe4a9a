//! What is remembered of the API server's answers: a little, and not for long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Refusal;

/// How long a good answer spares asking.
const GOOD: Duration = Duration::from_secs(60);

/// How long a bad one does: an agent that tries all the time costs the API server little, and is served soon after it is put right.
const BAD: Duration = Duration::from_secs(10);

/// How long a good answer counts when the API server does not answer. Longer than a stream's token is not looked at, so that who is
/// connected when it goes away may come back.
const OLD: Duration = Duration::from_secs(15 * 60);

/// Most good answers, and most bad ones: bad ones cost who sends them nothing, so they push out no good ones.
const MOST_GOOD: usize = 16 * 1024;
const MOST_BAD: usize = 1024;

/// The token's name here: whoever reads the memory of the cache cannot use it.
type Name = [u8; 32];

/// What is known of a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The API server has said so just now.
    Fresh(Result<Arc<str>, Refusal>),
    /// It said so a while ago.
    Old(Arc<str>),
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    good: HashMap<Name, Good>,
    bad: HashMap<Name, (Refusal, Instant)>,
}

#[derive(Debug)]
struct Good {
    node: Arc<str>,
    expires: SystemTime,
    asked: Instant,
}

impl Cache {
    /// What is known of this token.
    pub(super) fn look(&self, token: &str, now: Instant, today: SystemTime) -> Option<Known> {
        let name = name_of(token);
        if let Some((refusal, asked)) = self.bad.get(&name) {
            return (now.duration_since(*asked) < BAD).then(|| Known::Fresh(Err(refusal.clone())));
        }
        let good = self.good.get(&name).filter(|good| today < good.expires)?;
        match now.duration_since(good.asked) {
            age if age < GOOD => Some(Known::Fresh(Ok(good.node.clone()))),
            age if age < OLD => Some(Known::Old(good.node.clone())),
            _ => None,
        }
    }

    /// Remembers what the API server has said of it. That it said nothing is no answer.
    pub(super) fn put(
        &mut self,
        token: &str,
        answer: &Result<Arc<str>, Refusal>,
        expires: SystemTime,
        now: Instant,
    ) {
        let name = name_of(token);
        match answer {
            Err(Refusal::Unreachable(_)) => {}
            Ok(node) => {
                self.bad.remove(&name);
                self.good.insert(name, Good { node: node.clone(), expires, asked: now });
                if self.good.len() > MOST_GOOD {
                    shrink(&mut self.good, MOST_GOOD, |good| good.asked);
                }
            }
            Err(refusal) => {
                self.good.remove(&name);
                self.bad.insert(name, (refusal.clone(), now));
                if self.bad.len() > MOST_BAD {
                    shrink(&mut self.bad, MOST_BAD, |(_, asked)| *asked);
                }
            }
        }
    }
}

/// Lets the older half go: so seldom that it costs next to nothing an answer.
fn shrink<V>(map: &mut HashMap<Name, V>, most: usize, asked: impl Fn(&V) -> Instant) {
    let mut times: Vec<Instant> = map.values().map(&asked).collect();
    let (_, &mut middle, _) = times.select_nth_unstable(most / 2);
    map.retain(|_, value| asked(value) > middle);
}

fn name_of(token: &str) -> Name {
    *blake3::hash(token.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(3600)
    }

    fn good(node: &str) -> Result<Arc<str>, Refusal> {
        Ok(node.into())
    }

    #[test]
    fn an_answer_counts_for_a_while_and_never_longer_than_the_token() {
        let (mut cache, begin) = (Cache::default(), Instant::now());
        let today = SystemTime::UNIX_EPOCH;
        cache.put("one", &good("n1"), end(), begin);
        let at = |cache: &Cache, after: Duration, today| cache.look("one", begin + after, today);
        assert_eq!(at(&cache, Duration::ZERO, today), Some(Known::Fresh(good("n1"))));
        assert_eq!(at(&cache, GOOD, today), Some(Known::Old("n1".into())));
        assert_eq!(at(&cache, OLD, today), None);
        assert_eq!(at(&cache, Duration::ZERO, end()), None);
        assert_eq!(cache.look("two", begin, today), None);

        let silence = Err(Refusal::Unreachable(String::new()));
        cache.put("one", &silence, end(), begin + GOOD);
        assert_eq!(at(&cache, GOOD, today), Some(Known::Old("n1".into())));

        cache.put("one", &Err(Refusal::Expired), end(), begin + GOOD);
        assert_eq!(at(&cache, GOOD, today), Some(Known::Fresh(Err(Refusal::Expired))));
        assert_eq!(at(&cache, GOOD + BAD, today), None);
    }

    #[test]
    fn a_clock_that_jumps_lets_nobody_in_for_longer_and_shuts_nobody_out_for_good() {
        let (mut cache, begin) = (Cache::default(), Instant::now());
        let (today, hour) =
            (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Duration::from_secs(3600));
        cache.put("one", &good("n1"), today + hour / 4, begin);
        let at = |cache: &Cache, after: Duration, today| cache.look("one", begin + after, today);
        // Forward: not known any more, so the API server is asked, whose clock has not jumped.
        assert_eq!(at(&cache, Duration::ZERO, today + hour), None);
        // Back again: as if nothing had been.
        assert_eq!(at(&cache, Duration::ZERO, today), Some(Known::Fresh(good("n1"))));
        // Far back: that a token seems to be good for longer makes no answer count for longer.
        let long_ago = SystemTime::UNIX_EPOCH;
        assert_eq!(at(&cache, GOOD, long_ago), Some(Known::Old("n1".into())));
        assert_eq!(at(&cache, OLD, long_ago), None);
        // Nor does one that is refused stay so for longer.
        cache.put("one", &Err(Refusal::Expired), today, begin);
        for clock in [long_ago, today, today + hour] {
            assert_eq!(at(&cache, Duration::ZERO, clock), Some(Known::Fresh(Err(Refusal::Expired))));
            assert_eq!(at(&cache, BAD, clock), None);
        }
    }

    #[test]
    fn it_holds_so_much_and_bad_ones_push_out_no_good_ones() {
        let (mut cache, begin) = (Cache::default(), Instant::now());
        cache.put("mine", &good("n1"), end(), begin);
        for number in 0..3 * MOST_BAD as u64 {
            let now = begin + Duration::from_millis(number);
            cache.put(&number.to_string(), &Err(Refusal::Bad(String::new())), end(), now);
        }
        assert!(cache.bad.len() <= MOST_BAD);
        assert!(cache.look("mine", begin, SystemTime::UNIX_EPOCH).is_some());
        for number in 0..=MOST_GOOD as u64 {
            cache.put(
                &format!("good {number}"),
                &good("n2"),
                end(),
                begin + Duration::from_millis(1 + number),
            );
        }
        assert!(cache.good.len() <= MOST_GOOD);
        let newest = format!("good {MOST_GOOD}");
        assert!(cache.look(&newest, begin + Duration::from_secs(30), SystemTime::UNIX_EPOCH).is_some());
    }
}
