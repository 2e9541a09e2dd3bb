//! Files on their way: removed unless they are put in place, where a signal ends the program too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tempfile::NamedTempFile;

use super::place::folder;

/// The temporary files that there are.
static PENDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Held while files are put in place, so that a signal finds all of them there or none.
static PLACING: Mutex<()> = Mutex::new(());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // what they guard is whole wherever a thread may panic
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A signal waits while this is held.
pub fn undisturbed() -> MutexGuard<'static, ()> {
    lock(&PLACING)
}

/// A file beside the one that it will replace.
#[derive(Debug)]
pub struct Temporary(Option<NamedTempFile>);

impl Temporary {
    /// An empty one. It has the permissions of the file that it will replace from the start, since what
    /// others may not read they may not read meanwhile; those of any new file where there is none.
    pub fn beside(path: &Path) -> Result<Self> {
        let existing = fs::metadata(path).ok().map(|metadata| metadata.permissions());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".wgloss-");
        #[cfg(unix)]
        {
            // less the umask; temporary files are private otherwise
            use std::os::unix::fs::PermissionsExt;
            let new = fs::Permissions::from_mode(0o666);
            builder.permissions(existing.clone().unwrap_or(new));
        }
        // no signal comes between a file and its name in the list
        let mut pending = lock(&PENDING);
        let file = builder.tempfile_in(folder(path))?;
        pending.push(file.path().to_owned());
        drop(pending);
        let file = Temporary(Some(file));
        #[cfg(unix)]
        if let Some(permissions) = existing {
            // what the umask has taken
            file.file().set_permissions(permissions)?;
        }
        Ok(file)
    }

    /// The file, to be written to.
    pub fn file(&self) -> &fs::File {
        // it is there until `put` or `drop`
        self.0.as_ref().expect("a file that is not in place yet").as_file()
    }

    /// Puts it in place of what is at `path`.
    pub fn put(mut self, path: &Path) -> Result<(), std::io::Error> {
        let Some(file) = self.0.take() else { return Ok(()) };
        let name = file.path().to_owned();
        let result = file.persist(path);
        lock(&PENDING).retain(|pending| *pending != name);
        result.map(drop).map_err(|error| error.error)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let Some(file) = self.0.take() else { return };
        let name = file.path().to_owned();
        // removed before it leaves the list
        drop(file);
        lock(&PENDING).retain(|pending| *pending != name);
    }
}

/// From now on, signals that end the program remove its temporary files first. It ends by the signal all
/// the same, which shells go by.
#[cfg(unix)]
pub fn remove_upon_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::emulate_default_handler;

    // those that a parent has had ignored, such as `nohup`, stay so
    let ignored = ignored_signals();
    let ending = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ];
    let ending = ending.into_iter().filter(move |signal| ignored >> (signal - 1) & 1 == 0);
    let (ready, is_ready) = std::sync::mpsc::channel();
    // in the thread that waits for them: without it, they must go on ending the program
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let signals = Signals::new(ending);
        // nobody waits any more if this fails
        let _ = ready.send(());
        let Ok(mut signals) = signals else { return };
        // a file beyond the limit is an error of the write that crosses it
        let Some(signal) = signals.forever().find(|signal| *signal != SIGXFSZ) else { return };
        let _placing = lock(&PLACING);
        let pending = lock(&PENDING);
        pending.iter().for_each(|path| drop(fs::remove_file(path)));
        let _ = emulate_default_handler(signal);
        std::process::exit(128 + signal);
    });
    if thread.is_ok() {
        let _ = is_ready.recv();
    }
}

/// A bit for each signal that is ignored.
#[cfg(target_os = "linux")]
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Where that is not to be found out without unsafe code: what `nohup` ignores.
#[cfg(all(unix, not(target_os = "linux")))]
fn ignored_signals() -> u64 {
    1 << (signal_hook::consts::SIGHUP - 1)
}
