//! Divides tasks among threads.

use std::error::Error;
use std::iter::{from_fn, once};
use std::sync::{LazyLock, Mutex};

use rayon::ThreadPoolBuilder;

/// How many threads [`run`] may take here.
///
/// rayon starts its global pool at first use, and panics then and ever after where the system gives
/// no threads. There, the caller's thread becomes a pool of one.
pub(super) fn count() -> usize {
    static HAS_GLOBAL_POOL: LazyLock<bool> = LazyLock::new(|| {
        let started = ThreadPoolBuilder::new().build_global();
        // an error without a source says that it was there before
        started.map_or_else(|error| error.source().is_none(), |()| true)
    });
    let is_in_pool = rayon::current_thread_index().is_some();
    if !is_in_pool && !*HAS_GLOBAL_POOL {
        // it stays one when this handle is dropped
        let _ = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    }
    rayon::current_num_threads()
}

/// Runs tasks on as many of rayon's threads, and returns their results in order.
pub(super) fn run<T: Send, R: Send>(
    tasks: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator + Send>,
    run: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    run_with(tasks, || (), |(), task| run(task))
}

/// As [`run`], with `memory` that each thread makes for itself first.
///
/// The caller's thread is one of them. It begins while the others wake up, which takes longer than
/// many a call takes.
pub(super) fn run_with<T: Send, M, R: Send>(
    tasks: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator + Send>,
    memory: impl Fn() -> M + Sync,
    run: impl Fn(&mut M, T) -> R + Sync,
) -> Vec<R> {
    let tasks = tasks.into_iter();
    let threads = count().min(tasks.len());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn with_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
    }

    #[test]
    fn results_are_in_order() {
        for threads in [1, 2, 3] {
            for count in [0, 1, 2, 1000] {
                let memories = AtomicUsize::new(0);
                let results = with_threads(threads, || {
                    let memory = || memories.fetch_add(1, Ordering::Relaxed);
                    run_with(0..count, memory, |_, task| {
                        // others overtake this one
                        if task % 100 == 0 {
                            std::thread::sleep(std::time::Duration::from_millis(2));
                        }
                        task
                    })
                });
                assert_eq!(results, (0..count).collect::<Vec<_>>(), "{threads} threads");
                let memories = memories.into_inner();
                assert!(memories <= threads.min(count) && (memories > 0) == (count > 0));
            }
        }
    }

    #[test]
    fn a_task_may_run_tasks_of_its_own() {
        let sums =
            with_threads(2, || run(0..10_usize, |n| run(0..n, |i| i).into_iter().sum::<usize>()));
        assert_eq!(sums, (0..10).map(|n| (0..n).sum()).collect::<Vec<usize>>());
    }

    #[test]
    #[should_panic(expected = "task 7")]
    fn a_panic_reaches_the_caller() {
        with_threads(2, || run(0..20, |task| assert!(task != 7, "task {task}")));
    }
}
