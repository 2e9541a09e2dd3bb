//! Tests over several processes. Started by cargo, this program starts itself by mpirun for each subject and
//! number of ranks; started by mpirun, it is one of the ranks.
//!
//! ```sh
//! cargo test --test ranks            # all
//! cargo test --test ranks -- random  # a part, by name
//! ```

mod cases;
mod calls;
mod faults;

use std::panic;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use mpi::topology::SimpleCommunicator;
use wgloss_mpi::Ranks;

/// What a rank runs is in here, and so are its words for mpirun's end.
const SUBJECT: &str = "WGLOSS_MPI_SUBJECT";

/// How long mpirun may take: what hangs fails.
const LIMIT: Duration = Duration::from_secs(240);

/// A test: every rank calls the function.
struct Subject {
    name: &'static str,
    ranks: &'static [usize],
    run: fn(&SimpleCommunicator, Ranks),
    ends: Ends,
}

/// How mpirun ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Well,
    /// With another status, since a rank ends them all: within so many seconds, after these words.
    Badly(u64, &'static str),
}

fn subjects() -> Vec<Subject> {
    let well = |name, ranks, run| Subject { name, ranks, run, ends: Ends::Well };
    let badly = |name, run, seconds, words| Subject {
        name,
        ranks: &[4],
        run,
        ends: Ends::Badly(seconds, words),
    };
    vec![
        well("sums_in_the_order_of_ranks", &[1, 2, 4], calls::sums_in_the_order_of_ranks),
        well("random_shards", &[1, 2, 4], calls::random_shards),
        well("random_shards_on_the_gpu", &[1, 2, 4], calls::random_shards_on_the_gpu),
        well("random_products", &[1, 4], calls::random_products),
        well("one_rank_has_the_bits_of_one_device", &[1], calls::one_rank),
        well("merges_of_merges", &[2, 4], calls::merges_of_merges),
        well("tensors", &[2], calls::tensors),
        well("backward_later", &[2], calls::backward_later),
        well("parts_of_a_batch", &[1, 4], calls::parts_of_a_batch),
        well("ranks_that_differ", &[1, 4], faults::ranks_that_differ),
        well("a_rank_that_fails", &[2, 4], faults::a_rank_that_fails),
        badly("a_rank_that_is_late", faults::a_rank_that_is_late, 20, "TIMEOUT on 3 ranks"),
        badly("a_rank_that_dies", faults::a_rank_that_dies, 20, ""),
    ]
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(SUBJECT) {
        return be_a_rank(&name);
    }
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut failed = 0;
    for subject in subjects().iter().filter(|subject| subject.name.contains(&filter)) {
        for &ranks in subject.ranks {
            let start = Instant::now();
            let outcome = launch(subject, ranks);
            let told = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("{}, {ranks} ranks: {told} in {:.1?}", subject.name, start.elapsed());
            if let Err(output) = outcome {
                println!("{output}");
                failed += 1;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn be_a_rank(name: &str) -> ExitCode {
    // what unwinds would wait for the others in MPI's end
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(101);
    }));
    let universe = mpi::initialize().expect("MPI");
    let world = universe.world();
    let subject = subjects().into_iter().find(|subject| subject.name == name);
    let ranks = Ranks::new(&world).expect("ranks").deadline(Duration::from_secs(120));
    (subject.expect("a subject").run)(&world, ranks);
    ExitCode::SUCCESS
}

/// Runs a subject on so many ranks, and tells what they said if that ends otherwise than it should.
fn launch(subject: &Subject, ranks: usize) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = tempfile();
    let open = || std::fs::File::options().append(true).create(true).open(&output);
    let (out, err) = (open().map_err(|e| e.to_string())?, open().map_err(|e| e.to_string())?);
    let mut mpirun = Command::new(std::env::var("MPIRUN").unwrap_or("mpirun".into()));
    mpirun
        .args(["-n", &ranks.to_string()])
        .arg(program)
        .env(SUBJECT, subject.name)
        // Open MPI's: more ranks than cores, and containers, whose user is often root
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        // shared memory that containers often have not
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    let mut child = mpirun.spawn().map_err(|error| format!("cannot start mpirun: {error}"))?;
    let start = Instant::now();
    let limit = match subject.ends {
        Ends::Well => LIMIT,
        Ends::Badly(seconds, _) => Duration::from_secs(seconds),
    };
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Ok(status),
            None if start.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                break Err(format!("not at its end after {limit:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let said = std::fs::read_to_string(&output).unwrap_or_default();
    let _ = std::fs::remove_file(&output);
    match (status, subject.ends) {
        (Err(error), _) => Err(format!("{error}\n{said}")),
        (Ok(status), Ends::Well) if status.success() => Ok(()),
        (Ok(status), Ends::Badly(_, words)) if !status.success() && said.contains(words) => Ok(()),
        (Ok(status), _) => Err(format!("{status}\n{said}")),
    }
}

/// A file for what a launch says: a pipe that nobody reads would stop it.
fn tempfile() -> std::path::PathBuf {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("wgloss-mpi-{}-{count}.txt", std::process::id()))
}
