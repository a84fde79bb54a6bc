//! Groups items into batches, a key's items in their order, with bounded memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::BufRead;

use shared::name::Key;
use shared::payload::MAX_PAYLOAD_BYTES;

use super::ItemsError;
use super::item::Item;
use super::lines::Lines;

/// Most bytes that wait in unfinished batches. Beyond it, the one that was begun first goes out as it is.
pub(super) const MAX_OPEN_BYTES: usize = 32 * 1024 * 1024;
/// What an unfinished batch costs besides its text: map entries and allocations.
const OPEN_BATCH_COST: usize = 256;

/// How items become batches.
#[derive(Debug, Clone)]
pub(crate) struct Grouping {
    /// Field of the items that says whose work they are; one key for all if there is none.
    pub(crate) key_field: Option<String>,
    /// Most items in a batch.
    pub(crate) batch_size: usize,
}

/// One batch, as the API takes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NewBatch {
    pub(super) key: Key,
    /// An array of items.
    pub(super) payload: String,
    /// How many items.
    pub(crate) items: usize,
}

impl NewBatch {
    /// Appends the line of the submission: `{"key":"…","payload":[…]}`.
    pub(crate) fn write_line(&self, to: &mut Vec<u8>) {
        let key = serde_json::to_string(&self.key).expect("a text serialises");
        for part in ["{\"key\":", &key, ",\"payload\":", &self.payload, "}\n"] {
            to.extend_from_slice(part.as_bytes());
        }
    }
}

/// The batches of an input, in the order in which they fill up; at the end of the input the unfilled
/// ones, in the order in which they were begun. After an error comes nothing more.
#[derive(Debug)]
pub(crate) struct Batches<R> {
    lines: Lines<R>,
    grouping: Grouping,
    open: OpenBatches,
    ended: bool,
}

impl<R: BufRead> Batches<R> {
    pub(crate) fn new(input: R, grouping: Grouping) -> Self {
        Self {
            lines: Lines::new(input),
            grouping,
            open: OpenBatches::default(),
            ended: false,
        }
    }

    /// Reads on until a batch is finished.
    fn read(&mut self) -> Result<Option<NewBatch>, ItemsError> {
        while self.open.finished.is_empty() {
            let Some((line, text)) = self.lines.next()? else {
                if self.open.next_number == 0 {
                    return Err(ItemsError::Empty);
                }
                self.open.finish_oldest();
                break;
            };
            let item = Item::parse(text, self.grouping.key_field.as_deref())
                .map_err(|problem| ItemsError::Line { line, problem })?;
            self.open.add(item, self.grouping.batch_size);
        }
        Ok(self.open.finished.pop_front())
    }
}

impl<R: BufRead> Iterator for Batches<R> {
    type Item = Result<NewBatch, ItemsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let batch = self.read().transpose();
        self.ended = !matches!(batch, Some(Ok(_)));
        batch
    }
}

/// Batches that still take items, and those that are finished and not yet fetched.
#[derive(Debug, Default)]
struct OpenBatches {
    /// Numbered in the order in which they were begun.
    batches: BTreeMap<u64, NewBatch>,
    /// Which of them is a key's.
    of_key: HashMap<Key, u64>,
    /// What they cost together.
    bytes: usize,
    next_number: u64,
    finished: VecDeque<NewBatch>,
}

impl OpenBatches {
    fn add(&mut self, item: Item<'_>, batch_size: usize) {
        let addition = ",".len() + item.json.len();
        let mut number = self.of_key.get(&item.key).copied();
        let has_room = |batch: &NewBatch| batch.payload.len() + addition < MAX_PAYLOAD_BYTES;
        if let Some(full) = number.filter(|number| !has_room(&self.batches[number])) {
            self.finish(full);
            number = None;
        }
        let number = number.unwrap_or_else(|| self.begin(item.key));
        let batch = self.batches.get_mut(&number).expect("the batch is open");
        batch.payload.push(if batch.items == 0 { '[' } else { ',' });
        batch.payload.push_str(item.json);
        batch.items += 1;
        self.bytes += addition;
        if batch.items >= batch_size {
            self.finish(number);
        }
        while self.bytes > MAX_OPEN_BYTES {
            self.finish_oldest();
        }
    }

    fn begin(&mut self, key: Key) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.bytes += OPEN_BATCH_COST + key.as_str().len();
        self.of_key.insert(key.clone(), number);
        self.batches.insert(
            number,
            NewBatch {
                key,
                payload: String::new(),
                items: 0,
            },
        );
        number
    }

    fn finish_oldest(&mut self) {
        if let Some(&number) = self.batches.keys().next() {
            self.finish(number);
        }
    }

    fn finish(&mut self, number: u64) {
        let mut batch = self.batches.remove(&number).expect("the batch is open");
        self.of_key.remove(&batch.key);
        self.bytes -= OPEN_BATCH_COST + batch.key.as_str().len() + batch.payload.len();
        batch.payload.push(']');
        self.finished.push_back(batch);
    }
}
