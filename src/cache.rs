//! What is kept from one call to the next, within bounds: the least recently used goes first.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by their keys: at most so many, and of at most so many bytes together.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Rises with every use.
    clock: u64,
    max_entries: usize,
    max_bytes: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    last_use: u64,
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub fn new(max_entries: usize, max_bytes: u64) -> Self {
        Cache { entries: HashMap::new(), clock: 0, max_entries, max_bytes }
    }

    pub fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.last_use = self.clock;
        Some(entry.value.clone())
    }

    /// Keeps a value that holds so many bytes. The ones that were not used for longest make room, but
    /// never the new one: it is in use.
    pub fn insert(&mut self, key: K, value: V, bytes: u64) {
        self.clock += 1;
        self.entries.insert(key, Entry { value, bytes, last_use: self.clock });
        while self.entries.len() > 1 && self.is_too_full() {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            self.entries.remove(&oldest);
        }
    }

    fn is_too_full(&self) -> bool {
        let bytes: u64 = self.entries.values().map(|entry| entry.bytes).sum();
        self.entries.len() > self.max_entries || bytes > self.max_bytes
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::new(2, 100);
        cache.insert("a", 1, 10);
        cache.insert("b", 2, 10);
        assert_eq!(cache.get(&"a"), Some(1));
        cache.insert("c", 3, 10);
        assert_eq!([cache.get(&"a"), cache.get(&"b"), cache.get(&"c")], [Some(1), None, Some(3)]);
        cache.clear();
        assert_eq!(cache.get(&"a"), None);
    }

    #[test]
    fn bytes_are_bounded_but_for_the_newest() {
        let mut cache = Cache::new(9, 100);
        cache.insert("a", 1, 60);
        cache.insert("b", 2, 40);
        assert_eq!([cache.get(&"a"), cache.get(&"b")], [Some(1), Some(2)]);
        cache.insert("c", 3, 500);
        assert_eq!([cache.get(&"a"), cache.get(&"b"), cache.get(&"c")], [None, None, Some(3)]);
    }
}
