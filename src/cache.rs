//! What is kept from one call to the next, within bounds: the least recently used goes first.

use std::collections::HashMap;
use std::hash::Hash;

/// At most so many values by their keys.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: HashMap<K, (u64, V)>,
    /// Rises with every use.
    clock: u64,
    limit: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub fn new(limit: usize) -> Self {
        Cache { entries: HashMap::new(), clock: 0, limit }
    }

    pub fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let (used, value) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value.clone())
    }

    /// Keeps a value. The ones that were not used for longest make room.
    pub fn insert(&mut self, key: K, value: V) {
        self.clock += 1;
        self.entries.insert(key, (self.clock, value));
        while self.entries.len() > self.limit {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            self.entries.remove(&oldest);
        }
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
        let mut cache = Cache::new(2);
        cache.insert("a", 1);
        cache.insert("b", 2);
        assert_eq!(cache.get(&"a"), Some(1));
        cache.insert("c", 3);
        assert_eq!([cache.get(&"a"), cache.get(&"b"), cache.get(&"c")], [Some(1), None, Some(3)]);
        cache.clear();
        assert_eq!(cache.get(&"a"), None);
    }
}
