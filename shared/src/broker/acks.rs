//! Which deliveries can be acked together. AMQP's `multiple` acks everything up to a tag, so it may only
//! cover deliveries that are all done.

use std::collections::BTreeMap;

/// One `basic.ack` to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The delivery, or the last of several.
    pub tag: u64,
    /// Whether everything before it is acked too.
    pub multiple: bool,
}

/// The unacked deliveries of one channel, in order.
#[derive(Debug, Default)]
pub struct AckWindow {
    /// Whether each open delivery is done.
    open: BTreeMap<u64, bool>,
}

impl AckWindow {
    /// A delivery arrived.
    pub fn deliver(&mut self, tag: u64) {
        self.open.insert(tag, false);
    }

    /// A delivery was settled in another way (nacked, rejected): it needs no ack and blocks none.
    pub fn forget(&mut self, tag: u64) {
        self.open.remove(&tag);
    }

    /// A delivery is done. Unknown tags are ignored.
    pub fn done(&mut self, tag: u64) {
        if let Some(done) = self.open.get_mut(&tag) {
            *done = true;
        }
    }

    /// How many deliveries are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no delivery is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The acks that cover everything done so far: one `multiple` for the unbroken run at the front, single
    /// ones behind the first delivery that still runs, so that one long batch does not fill the prefetch.
    pub fn take_acks(&mut self) -> Vec<Ack> {
        let mut acks = Vec::new();
        let first_open = self
            .open
            .iter()
            .find(|(_, done)| !**done)
            .map(|(tag, _)| *tag);
        let behind = match first_open {
            Some(tag) => self.open.split_off(&tag),
            None => BTreeMap::new(),
        };
        if let Some((tag, _)) = self.open.last_key_value() {
            acks.push(Ack {
                tag: *tag,
                multiple: self.open.len() > 1,
            });
        }
        self.open = behind;
        self.open.retain(|tag, done| {
            if *done {
                acks.push(Ack {
                    tag: *tag,
                    multiple: false,
                });
            }
            !*done
        });
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(tags: std::ops::RangeInclusive<u64>) -> AckWindow {
        let mut window = AckWindow::default();
        tags.for_each(|tag| window.deliver(tag));
        window
    }

    #[test]
    fn a_run_at_the_front_is_one_ack() {
        let mut window = window(1..=5);
        for tag in 1..=3 {
            window.done(tag);
        }
        assert_eq!(
            window.take_acks(),
            [Ack {
                tag: 3,
                multiple: true
            }]
        );
        assert_eq!(window.take_acks(), []);
        assert_eq!(window.len(), 2);
    }

    #[test]
    fn nothing_running_is_ever_covered() {
        let mut window = window(1..=5);
        for tag in [1, 3, 5] {
            window.done(tag);
        }
        let single = |tag| Ack {
            tag,
            multiple: false,
        };
        assert_eq!(window.take_acks(), [single(1), single(3), single(5)]);
        window.done(4);
        window.forget(2);
        assert_eq!(window.take_acks(), [single(4)]);
        assert!(window.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn acks_cover_exactly_what_is_done(done in proptest::collection::vec(proptest::bool::ANY, 1..60)) {
            let count = done.len() as u64;
            let mut window = window(1..=count);
            let finished: Vec<u64> = (1..=count).filter(|tag| done[usize::try_from(*tag).unwrap() - 1]).collect();
            for tag in &finished {
                window.done(*tag);
            }
            let mut open: std::collections::BTreeSet<u64> = (1..=count).collect();
            for ack in window.take_acks() {
                open.retain(|tag| if ack.multiple { *tag > ack.tag } else { *tag != ack.tag });
            }
            let expected: std::collections::BTreeSet<u64> =
                (1..=count).filter(|tag| !finished.contains(tag)).collect();
            proptest::prop_assert_eq!(open, expected);
        }
    }
}
