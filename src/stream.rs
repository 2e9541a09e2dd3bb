//! Streams of batches: the upload of the next, the dispatches of this and the readback of the last,
//! all at once.

use std::collections::VecDeque;
use std::fmt;

use crate::session::{PendingCall, Session, check};
use crate::shape::Layout;
use crate::{Args, Array, Error, Gpu, Op, Output, Pass, Result};

/// A pass of an op over one batch of host arrays after another, several of them in flight: while
/// the device computes one, the host uploads the next and reads the last one back.
///
/// Results come in the order of the batches. A batch that fails yields [`Error::Batch`] in its
/// turn, and the others are not concerned. Batches may differ in their layouts: as long as they do
/// not, nothing is planned or allocated again.
///
/// ```no_run
/// use wgloss::{Args, Array, CrossEntropy, Gpu, Pass};
///
/// let gpu = Gpu::blocking()?;
/// # let (logits, targets) = (vec![0.0_f32; 4096 * 10], vec![0; 4096]);
/// let batches = logits.chunks(1024 * 10).zip(targets.chunks(1024)).map(|(logits, targets)| {
///     let logits = Array::new(logits, &[targets.len(), 10]).unwrap();
///     Args::new(logits).target(Array::from(targets))
/// });
/// let op = CrossEntropy::default();
/// for output in gpu.stream(&op, Pass::ForwardBackward).blocking(batches) {
///     let output = output?; // of one batch after the other
///     # let _ = output;
/// }
/// # Ok::<_, wgloss::Error>(())
/// ```
/// Where blocking is not possible, or batches come from elsewhere than an iterator:
///
/// ```no_run
/// # use wgloss::{Args, Array, Gpu, Op, Pass, Result};
/// # async fn f(gpu: Gpu, op: &dyn Op, batches: Vec<Args<Array<'static>>>) -> Result<()> {
/// # let use_it = |_| {};
/// let mut stream = gpu.stream(op, Pass::ForwardBackward).in_flight(3);
/// for args in batches {
///     if let Some(output) = stream.push(&args).await {
///         use_it(output?);
///     }
/// }
/// while let Some(output) = stream.next().await {
///     use_it(output?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Stream<'a> {
    gpu: Gpu,
    op: &'a dyn Op,
    pass: Pass,
    limit: usize,
    /// For the layouts of the last batch.
    session: Option<(Args<Layout>, Session)>,
    /// How many batches were pushed.
    pushed: usize,
    /// The last ones of these, oldest first.
    batches: VecDeque<Result<PendingCall>>,
}

impl Gpu {
    /// A stream of batches through a pass of an op.
    pub fn stream<'a>(&self, op: &'a dyn Op, pass: Pass) -> Stream<'a> {
        Stream {
            gpu: self.clone(),
            op,
            pass,
            limit: 2,
            session: None,
            pushed: 0,
            batches: VecDeque::new(),
        }
    }
}

impl<'a> Stream<'a> {
    /// The most batches in flight, each of which takes memory for its transfers; 0 is taken as 1.
    /// Default: 2.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.limit = batches.max(1);
        self
    }

    /// Submits a batch, whose arrays are free afterwards. When as many batches are in flight as may
    /// be, waits for the oldest one before, and returns its results.
    pub async fn push(&mut self, args: &Args<Array<'_>>) -> Option<Result<Output<Array<'static>>>> {
        let oldest = if self.is_full() { self.next().await } else { None };
        let call = self.start(args).await;
        self.pushed += 1;
        self.batches.push_back(call);
        oldest
    }

    /// Waits for the oldest batch in flight and returns its results; `None` when none is in flight.
    ///
    /// # Errors
    /// [`Error::Batch`], which holds the batch's index and what [`Gpu::forward`] may return.
    pub async fn next(&mut self) -> Option<Result<Output<Array<'static>>>> {
        let index = self.pushed - self.batches.len();
        // leaves the queue when all is awaited: a caller may give up the wait and come back
        let result = match self.batches.front()? {
            Ok(call) => call.finish().await,
            Err(error) => Err(error.clone()),
        };
        self.batches.pop_front();
        Some(result.map_err(|error| Error::Batch { index, error: Box::new(error) }))
    }

    /// The results of all batches of an iterator, for callers that do not use async. The iterator
    /// is asked for a batch whenever there is room for one.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking<'b>(
        mut self,
        batches: impl IntoIterator<Item = Args<Array<'b>>>,
    ) -> impl Iterator<Item = Result<Output<Array<'static>>>> {
        let gpu = self.gpu.clone();
        let mut batches = batches.into_iter().fuse();
        std::iter::from_fn(move || {
            while !self.is_full()
                && let Some(args) = batches.next()
            {
                gpu.block_on(self.push(&args));
            }
            gpu.block_on(self.next())
        })
    }

    fn is_full(&self) -> bool {
        self.batches.len() >= self.limit
    }

    async fn start(&mut self, args: &Args<Array<'_>>) -> Result<PendingCall> {
        check(self.op, self.pass, args)?;
        let layouts = args.layouts();
        let session = match self.session.take() {
            Some((planned, session)) if planned == layouts => session,
            // the new one finds the buffers of the old one
            old => {
                drop(old);
                Session::new(&self.gpu, self.op, self.pass, &layouts).await?
            }
        };
        let (_, session) = self.session.insert((layouts, session));
        session.start(args).await
    }
}

impl fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("op", &self.op)
            .field("pass", &self.pass)
            .field("in_flight", &self.batches.len())
            .finish_non_exhaustive()
    }
}
