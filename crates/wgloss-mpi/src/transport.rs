//! Collective calls that do not block, and waits for them that end: the one place where MPI is called
//! without rsmpi's wrappers.
//!
//! rsmpi's requests borrow their buffers, and its scopes wait for all that is not complete: neither can be
//! given up. Here the buffers are owned, and what is given up is leaked, since MPI may still read and write them.

// The wrappers of rsmpi return no errors and cannot be given up.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::mem;
use std::time::{Duration, Instant};

use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::SimpleCommunicator;

use crate::{Error, Result};

/// What a collective call does with the words of each rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collective {
    /// All go to every rank.
    AllGather,
    /// The k-th part of them goes to rank k.
    AllToAll,
}

/// A collective call that was begun.
pub(crate) struct Request {
    what: &'static str,
    request: ffi::MPI_Request,
    sent: Vec<u32>,
    received: Vec<u32>,
    is_complete: bool,
}

/// Has the communicator return errors, where MPI would end the program by default.
pub(crate) fn return_errors(communicator: &SimpleCommunicator) -> Result<()> {
    // SAFETY: the communicator is live, and the handler is a constant of MPI's.
    let code =
        unsafe { ffi::MPI_Comm_set_errhandler(communicator.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
    checked("MPI_Comm_set_errhandler", code)
}

impl Request {
    /// Begins a call in which every one of so many ranks takes part with equally many words.
    pub fn begin(
        communicator: &SimpleCommunicator,
        ranks: usize,
        what: &'static str,
        collective: Collective,
        sent: Vec<u32>,
    ) -> Result<Self> {
        let to_each = match collective {
            Collective::AllGather => sent.len(),
            Collective::AllToAll => sent.len() / ranks,
        };
        let count = c_int::try_from(to_each).map_err(|_| Error::Value {
            argument: "message",
            expected: format!("at most {} words to a rank", c_int::MAX),
            actual: to_each.to_string(),
        })?;
        // SAFETY: a constant of MPI's.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut call =
            Request { what, request, sent, received: vec![0; to_each * ranks], is_complete: false };
        let begin = match collective {
            Collective::AllGather => ffi::MPI_Iallgather,
            Collective::AllToAll => ffi::MPI_Ialltoall,
        };
        // SAFETY: the first buffer holds `count` words, or that many for each rank, and the second that
        // many for each rank. Both are the request's, which keeps them in place until MPI says that
        // it is complete, and leaks them otherwise.
        let code = unsafe {
            begin(
                call.sent.as_ptr().cast(),
                count,
                ffi::RSMPI_UINT32_T,
                call.received.as_mut_ptr().cast(),
                count,
                ffi::RSMPI_UINT32_T,
                communicator.as_raw(),
                &mut request,
            )
        };
        call.request = request;
        checked(what, code)?;
        Ok(call)
    }

    /// What came, rank after rank.
    pub fn wait(mut self, deadline: Duration, ranks: usize) -> Result<Vec<u32>> {
        /// How long a wait is busy: what is exchanged is small, and mostly there by then.
        const BUSY: Duration = Duration::from_millis(2);
        let start = Instant::now();
        while !self.test()? {
            let waited = start.elapsed();
            if waited > deadline {
                return Err(Error::Timeout { what: self.what, ranks, deadline });
            }
            if waited < BUSY {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(mem::take(&mut self.received))
    }

    /// Lets MPI proceed, and tells whether the call is complete.
    fn test(&mut self) -> Result<bool> {
        let mut flag = 0;
        // SAFETY: the request was begun and is not complete; the status is ignored.
        let code = unsafe { ffi::MPI_Test(&mut self.request, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
        checked(self.what, code)?;
        self.is_complete = flag != 0;
        Ok(self.is_complete)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_complete {
            mem::forget(mem::take(&mut self.sent));
            mem::forget(mem::take(&mut self.received));
        }
    }
}

/// An error where MPI returned one.
fn checked(what: &'static str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the text has room for the longest of MPI's.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    let text = text.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    Err(Error::Mpi { what, message: String::from_utf8_lossy(text).into_owned() })
}
