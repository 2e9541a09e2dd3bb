//! The processes that share a loss.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator;
use wgloss::{Gpu, GpuOptions};

use crate::agree::{Agreed, Call, Kind};
use crate::transport::{Collective, Request, return_errors};
use crate::{Error, Result};

/// The processes of a communicator, and how long they wait for one another.
///
/// ```no_run
/// use wgloss_mpi::Ranks;
///
/// let universe = mpi::initialize().expect("MPI");
/// let ranks = Ranks::new(&universe.world())?;
/// let gpu = ranks.gpu()?;
/// println!("rank {} of {} computes on {}", ranks.rank(), ranks.size(), gpu.info().name);
/// # Ok::<_, wgloss_mpi::Error>(())
/// ```
pub struct Ranks {
    /// Shared with nobody, until it is leaked since MPI cannot free it.
    communicator: Rc<SimpleCommunicator>,
    rank: usize,
    size: usize,
    local_rank: usize,
    deadline: Duration,
    is_broken: Cell<bool>,
}

/// An exchange that was begun: [`Exchange::wait`] ends it.
pub(crate) struct Exchange<'r> {
    ranks: &'r Ranks,
    /// None once it is waited for.
    request: Option<Request>,
}

impl Ranks {
    /// All processes of a communicator, which all call this at the same time. Messages of this crate go
    /// by a duplicate of it, and meet no others. The duplicate returns errors; what MPI does by default is
    /// to end the program.
    ///
    /// This one call waits for all processes without a deadline, since MPI's duplication does.
    ///
    /// # Errors
    /// [`Error::Mpi`], [`Error::Timeout`].
    pub fn new(communicator: &impl Communicator) -> Result<Self> {
        let duplicate = communicator.duplicate();
        return_errors(&duplicate)?;
        let [rank, size] = [duplicate.rank(), duplicate.size()].map(|n| n.unsigned_abs() as usize);
        let mut ranks = Ranks {
            communicator: Rc::new(duplicate),
            rank,
            size,
            local_rank: 0,
            deadline: Duration::from_secs(60),
            is_broken: Cell::new(false),
        };
        ranks.local_rank = ranks.find_local_rank()?;
        Ok(ranks)
    }

    /// How long each wait of an exchange may take: until all ranks have come to it, with what they have
    /// to compute and compile before, and until their messages are here. Default: 60 seconds.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number of this process among those on the same machine, from 0.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The adapter of this process: that of its [local rank](Self::local_rank) among those of the
    /// best type of its machine (hardware, where there is any), and the first again where there are more ranks than adapters.
    ///
    /// # Errors
    /// As [`Gpu::with_options`].
    pub fn gpu(&self) -> Result<Gpu> {
        let adapters = pollster::block_on(wgloss::adapters());
        let types: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().device_type).collect();
        let equals = types.iter().take_while(|&kind| Some(kind) == types.first()).count();
        let options = GpuOptions::default().index(self.local_rank % equals.max(1));
        Ok(Gpu::blocking_with_options(&options)?)
    }

    /// Adds up what the ranks have, element by element, in f32 and in the order of ranks: the same bits on
    /// every rank and in every run, whatever the network is. `MPI_Allreduce` promises neither.
    ///
    /// Each rank adds a part of the elements and gathers the others' sums, so that a rank receives `8 (R -
    /// 1) / R` bytes an element, as in a ring's all-reduce.
    ///
    /// # Errors
    /// [`Error::Disagree`] where the lengths differ; [`Error::Timeout`], [`Error::Failed`],
    /// [`Error::Mpi`], [`Error::Broken`].
    pub fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.agree(Call::new(Kind::Sum).size(values.len()))?.wait()?;
        self.sum_agreed(values, false)
    }

    /// Ends all processes of the communicator, by `MPI_Abort`: after an [`Error::Timeout`], when MPI's own
    /// end would wait for those that are missing.
    pub fn abort(&self, status: i32) -> ! {
        self.communicator.abort(status)
    }

    /// The sum where lengths are known to be equal. A rank that failed takes part with zeros, and says so.
    pub(crate) fn sum_agreed(&self, values: &mut [f32], has_failed: bool) -> Result<()> {
        let own = values.len().div_ceil(self.size);
        let failed = u32::from(has_failed);
        let mut parts = vec![0; self.size * (own + 1)];
        for (k, part) in parts.chunks_exact_mut(own + 1).enumerate() {
            let values = values.iter().skip(k * own).take(own);
            part.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
            part[own] = failed;
        }
        let parts = self.begin("sum", Collective::AllToAll, parts)?.wait()?;
        let mut parts = parts.chunks_exact(own + 1);
        let mut sums = parts.next().map(<[u32]>::to_vec).unwrap_or_default();
        let mut first_failed = (sums[own] != 0).then_some(0);
        for (part, rank) in parts.zip(1..) {
            for (sum, value) in sums.iter_mut().zip(&part[..own]) {
                *sum = (f32::from_bits(*sum) + f32::from_bits(*value)).to_bits();
            }
            first_failed = first_failed.or((part[own] != 0).then_some(rank));
        }
        sums[own] = 0;
        let sums = self.begin("sums", Collective::AllGather, sums)?.wait()?;
        let sums = sums.chunks_exact(own + 1).flat_map(|part| &part[..own]);
        values.iter_mut().zip(sums).for_each(|(value, sum)| *value = f32::from_bits(*sum));
        match first_failed {
            Some(rank) => Err(Error::Failed { rank }),
            None => Ok(()),
        }
    }

    /// Compares what ranks must have in common. Computing may go on before the wait.
    pub(crate) fn agree(&self, call: Call) -> Result<Agreement<'_>> {
        let exchange = self.begin("agreement", Collective::AllGather, call.words())?;
        Ok(Agreement { exchange, call })
    }

    /// Begins an exchange.
    pub(crate) fn begin(
        &self,
        what: &'static str,
        collective: Collective,
        words: Vec<u32>,
    ) -> Result<Exchange<'_>> {
        if self.is_broken.get() {
            return Err(Error::Broken { what });
        }
        let request = Request::begin(&self.communicator, self.size, what, collective, words);
        match request {
            Ok(request) => Ok(Exchange { ranks: self, request: Some(request) }),
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    /// No exchange is begun after one that was not finished, and the communicator is not freed: MPI might wait
    /// for the others.
    fn give_up(&self) {
        if !self.is_broken.replace(true) {
            std::mem::forget(self.communicator.clone());
        }
    }

    /// How many ranks before this one are on the same machine.
    fn find_local_rank(&self) -> Result<usize> {
        /// The longest name that is told apart, in words.
        const WORDS: usize = 64;
        let name = mpi::environment::processor_name().unwrap_or_default();
        let mut bytes = name.into_bytes();
        bytes.resize(4 * WORDS, 0);
        let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let words: Vec<u32> = words.collect();
        let all = self.begin("names of machines", Collective::AllGather, words.clone())?.wait()?;
        Ok(all.chunks_exact(WORDS).take(self.rank).filter(|other| *other == words).count())
    }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ranks { rank, size, local_rank, deadline, .. } = self;
        f.debug_struct("Ranks")
            .field("rank", rank)
            .field("size", size)
            .field("local_rank", local_rank)
            .field("deadline", deadline)
            .finish_non_exhaustive()
    }
}

impl Exchange<'_> {
    /// What came, rank after rank.
    pub fn wait(mut self) -> Result<Vec<u32>> {
        match self.request.take() {
            Some(request) => {
                let received = request.wait(self.ranks.deadline, self.ranks.size);
                received.inspect_err(|_| self.ranks.give_up())
            }
            None => Ok(vec![]),
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if self.request.is_some() {
            self.ranks.give_up();
        }
    }
}

/// A comparison that was begun.
pub(crate) struct Agreement<'r> {
    exchange: Exchange<'r>,
    call: Call,
}

impl Agreement<'_> {
    /// What the ranks say, once they say the same.
    pub fn wait(self) -> Result<Agreed> {
        self.call.agreed(&self.exchange.wait()?)
    }
}
