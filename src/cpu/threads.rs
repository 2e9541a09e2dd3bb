//! Tasks, divided among threads.

use std::iter::{from_fn, once};
use std::sync::Mutex;

/// Runs tasks on as many of rayon's threads, and returns their results in order. Each thread makes
/// itself a `memory` first.
///
/// The caller's thread is one of them: it begins while the others wake, which takes longer than many
/// a call.
pub(super) fn run<T: Send, M, R: Send>(
    tasks: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator + Send>,
    memory: impl Fn() -> M + Sync,
    run: impl Fn(&mut M, T) -> R + Sync,
) -> Vec<R> {
    let tasks = tasks.into_iter();
    let threads = rayon::current_num_threads().min(tasks.len());
    let tasks = Mutex::new(tasks.enumerate());
    let results = Mutex::new(Vec::new());
    let next = || tasks.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
    let work = || {
        let Some(first) = next() else { return };
        let mut memory = memory();
        let of_thread = once(first).chain(from_fn(next));
        let mut of_thread: Vec<_> =
            of_thread.map(|(i, task)| (i, run(&mut memory, task))).collect();
        let mut all = results.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.append(&mut of_thread);
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work());
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.sort_unstable_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}
