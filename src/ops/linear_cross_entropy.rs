//! Softmax cross entropy of logits that are a product.

use super::options::{
    self, Family, Info, Key, Kind, Numbers, Opt, Target, Value, Weight, flag, integer,
};
use super::products::{Epilogue, Form, Matrix};
use super::rows::{Partials, RowLoss, RowOperands, RowResults, RowTarget, expect_class_values_of};
use super::{
    CrossEntropy, FLOATS, Op, expect_args, expect_dtype, expect_shape, expect_upstream,
    grad_layout, grad_view, loss_layout, sealed, shards,
};
use crate::kernel;
use crate::program::{Program, Slot, View, chunks};
use crate::reference::{self, Tolerance, Values};
use crate::shape::Layout;
use crate::tuning::DeviceProfile;
use crate::{Args, Array, DType, Error, Output, Pass, Result, Role};

/// Softmax cross entropy of the logits `x W^T + b`, which are never stored: of hidden states `x`, a
/// classifier `W` and an optional bias `b`. It is the loss of language models.
///
/// With N rows of D numbers and V classes,
///
/// ```text
/// logits[n, v] = sum over d of x[n, d] W[v, d]  +  b[v]
/// loss         = CrossEntropy of these logits, with every option of it that class targets have
/// grad[n, d]             = sum over v of G[n, v] W[v, d]        G is the gradient of the logits
/// grad_projection[v, d]  = sum over n of G[n, v] x[n, d]
/// grad_bias[v]           = sum over n of G[n, v]
/// ```
///
/// The loss's options are those of the [`CrossEntropy`] that it is made of:
///
/// ```
/// use wgloss::{CrossEntropy, LinearCrossEntropy};
///
/// let op = LinearCrossEntropy::new(CrossEntropy::default().label_smoothing(0.1));
/// # assert_ne!(op, LinearCrossEntropy::default());
/// ```
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | `[..., D]`: hidden states, in N rows | f32, f16 or bf16 |
/// | `projection` | `[V, D]` | the input's |
/// | `bias` | `[V]` | f32 |
/// | `target` | the input's without the last dimension: class indices | i32; i64 from the host |
/// | `weight` | `[V]`: any finite numbers | f32 |
/// | `upstream` | one value (mean, sum) or the loss's shape (none) | f32 |
/// | `state` | `[N, 4]`, from a forward pass that kept it, over the same arguments and options | f32 |
/// | `grad_projection`, `grad_bias` | what these gradients are added to | f32 |
/// | `partials`, `divisor` | those of all shards, see below | f32 |
///
/// # Results
/// The gradient with respect to the input is stored as the input is. That of the projection is f32, since
/// sums in 16 bits lose what micro-batches add; [`narrow_grad_projection`](Self::narrow_grad_projection)
/// stores it as the projection is. Each is left out where it is frozen. Row outputs are
/// those of [`CrossEntropy::row_outputs`].
///
/// # Memory
/// Beside arguments and results a plan holds a workspace: the logits of a block of rows, which become their
/// gradient in place, or in forward alone 32 bytes for each 64 or 128 of them, and, where the input is not f32 or D no multiple of 4, copies of blocks of the input and
/// the projection. [`workspace_bytes`](Self::workspace_bytes) bounds it.
///
/// # Shards
/// With [`CrossEntropy::shard`] the projection has a shard of the classes, and so have bias, weight and their gradients. The
/// gradient with respect to the input is then the shard's part of a sum over all shards, which the caller adds up; in f32
/// where the input is.
///
/// # Numerics
/// Products accumulate in f32, in the order of their terms, and logits are not rounded to 16 bits. With
/// `L = (D + 8) 2^-24 sum over d of |x[d] W[v, d]| + 2^-24 |b[v]|`, which bounds a logit's rounding, the loss is within
/// [`CrossEntropy`]'s promise of the loss at logits moved by at most L; gradients likewise, and to those come
/// `(K + 8) 2^-24` of the sum of the absolute values of the K terms that are added. Results are the same
/// to the bit on every run.
///
/// # Edges
/// Those of [`CrossEntropy`]. Where a logit is not finite, so may be every gradient of its row: an infinity times
/// 0 is NaN in a product, as in PyTorch. A gradient of 0 adds 0 where what it is multiplied by is finite.
///
/// Source: PyTorch's `torch.nn.functional.linear_cross_entropy`; gradients of blocks in forward from Hsu et al.,
/// "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024.
#[derive(Debug, Clone)]
pub struct LinearCrossEntropy {
    pub(crate) loss: CrossEntropy,
    pub(crate) freeze_input: bool,
    pub(crate) freeze_projection: bool,
    pub(crate) freeze_bias: bool,
    pub(crate) narrow_grad_projection: bool,
    pub(crate) workspace_bytes: i64,
}

impl Default for LinearCrossEntropy {
    fn default() -> Self {
        LinearCrossEntropy::new(CrossEntropy::default())
    }
}

/// Sizes of an op's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinearShape {
    /// N: how many hidden states there are.
    pub rows: usize,
    /// D: how many numbers a hidden state has.
    pub dims: usize,
    /// V.
    pub classes: usize,
}

impl LinearShape {
    /// Of layouts that [`Op::outputs`] has passed.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not fit one another.
    pub fn of(args: &Args<Layout>) -> Result<Self> {
        let projection = args.required(Role::Projection, || "linear_cross_entropy".into())?;
        let (input, projection) = (args.input().shape(), projection.shape());
        let (rows, dims) = match input {
            [rows @ .., dims] if *dims > 0 => (rows, *dims),
            _ => {
                return Err(Error::Shape {
                    argument: Role::Input.name(),
                    expected: "[..., D] with D at least 1".into(),
                    actual: input.to_vec(),
                });
            }
        };
        match *projection {
            [classes, projected] if classes > 0 && projected == dims => {
                Ok(LinearShape { rows: rows.iter().product(), dims, classes })
            }
            _ => Err(Error::Shape {
                argument: Role::Projection.name(),
                expected: format!("[V, {dims}] with V at least 1, as the input is {input:?}"),
                actual: projection.to_vec(),
            }),
        }
    }
}

impl LinearShape {
    /// The bytes of a row of logits and of a row of the projection, in f32 and whole vec4s.
    fn padded_bytes(self) -> [u64; 2] {
        [self.classes, self.dims].map(|n| (n as u64).div_ceil(4).saturating_mul(16))
    }

    /// The bytes of what one row needs at most: its logits, copies of it and of its gradient, and a copy of four rows of the
    /// projection.
    fn least_workspace(self) -> u64 {
        let [logits, dims] = self.padded_bytes();
        logits.saturating_add(dims.saturating_mul(6))
    }
}

impl LinearCrossEntropy {
    /// That of a [`CrossEntropy`], whose options it has.
    pub fn new(loss: CrossEntropy) -> Self {
        LinearCrossEntropy {
            loss,
            freeze_input: false,
            freeze_projection: false,
            freeze_bias: false,
            narrow_grad_projection: false,
            workspace_bytes: 256 << 20,
        }
    }

    /// Whether backward passes leave out the gradient with respect to the input. Default: no.
    pub fn freeze_input(mut self, freeze_input: bool) -> Self {
        self.freeze_input = freeze_input;
        self
    }

    /// Whether backward passes leave out the gradient with respect to the projection, which saves one of three
    /// products. Default: no.
    pub fn freeze_projection(mut self, freeze_projection: bool) -> Self {
        self.freeze_projection = freeze_projection;
        self
    }

    /// Whether backward passes leave out the gradient with respect to the bias. Default: no.
    pub fn freeze_bias(mut self, freeze_bias: bool) -> Self {
        self.freeze_bias = freeze_bias;
        self
    }

    /// Whether the gradient with respect to the projection is stored as the projection is. It is summed
    /// in f32 all the same, in a copy beyond the workspace, and cannot be added to another one. Default: no, it is f32.
    pub fn narrow_grad_projection(mut self, narrow_grad_projection: bool) -> Self {
        self.narrow_grad_projection = narrow_grad_projection;
        self
    }

    /// The most bytes of memory for blocks of logits and of copies: at least one row's. More rows in a
    /// block mean fewer passes over the projection and its gradient. Default: 256 MiB.
    pub fn workspace_bytes(mut self, workspace_bytes: i64) -> Self {
        self.workspace_bytes = workspace_bytes;
        self
    }

    const OPTIONS: &'static [Opt<Self>] = &[
        flag("freeze_input", "Backward leaves out the gradient of the input", |op| {
            &mut op.freeze_input
        }),
        flag("freeze_projection", "Backward leaves out the gradient of the projection", |op| {
            &mut op.freeze_projection
        }),
        flag("freeze_bias", "Backward leaves out the gradient of the bias", |op| {
            &mut op.freeze_bias
        }),
        flag(
            "narrow_grad_projection",
            "The projection's gradient is stored as the projection is, not as f32",
            |op| &mut op.narrow_grad_projection,
        ),
        integer(
            "workspace_bytes",
            "The most bytes of memory for blocks of logits",
            &[256 << 20, 1 << 20, 64 << 20],
            |op| &mut op.workspace_bytes,
        ),
    ];

    /// Whether a pass gives the gradient of this role.
    pub(crate) fn gives(&self, role: Role, pass: Pass, has_bias: bool) -> bool {
        pass.has_grad()
            && match role {
                Role::Grad => !self.freeze_input,
                Role::GradProjection => !self.freeze_projection,
                Role::GradBias => has_bias && !self.freeze_bias,
                _ => false,
            }
    }
}

impl PartialEq for LinearCrossEntropy {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for LinearCrossEntropy {}

impl std::hash::Hash for LinearCrossEntropy {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl sealed::Sealed for LinearCrossEntropy {}

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn about(&self) -> &'static str {
        "Softmax cross entropy of hidden states [..., D] times a projection [V, D], with classes"
    }

    fn kind(&self) -> Kind {
        Kind {
            family: Family::LinearLoss,
            input: Numbers::Any,
            target: Some(Target::Classes),
            weight: Some(Weight::Classes),
            pos_weight: false,
            fused_in_place: true,
            grad_reads_input: true,
            row_outputs: true,
        }
    }

    fn options(&self) -> Vec<Info> {
        let of_loss = options::infos(&self.loss, CrossEntropy::OPTIONS);
        of_loss.into_iter().chain(options::infos(self, Self::OPTIONS)).collect()
    }

    fn set(&mut self, name: &str, value: Value) -> Result<()> {
        if options::has(CrossEntropy::OPTIONS, name) {
            return options::set(&mut self.loss, CrossEntropy::OPTIONS, name, value);
        }
        if options::has(Self::OPTIONS, name) {
            return options::set(self, Self::OPTIONS, name, value);
        }
        let infos = self.options();
        let names: Vec<_> = infos.iter().map(|info| info.name).collect();
        Err(options::unknown(&names, name))
    }

    fn boxed(&self) -> Box<dyn Op> {
        Box::new(self.clone())
    }

    fn key(&self) -> Key {
        let mut key = options::key(self, Self::OPTIONS);
        key.values.extend(options::values(&self.loss, CrossEntropy::OPTIONS));
        key
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let describe = || format!("{}.{}", self.name(), pass.name());
        self.loss.check_options()?;
        options::check(self, Self::OPTIONS)?;
        let has_bias = args.get(Role::Bias).is_some();
        let mut known = vec![Role::Projection, Role::Bias, Role::Target, Role::Weight];
        known.extend(self.loss.loss_arguments(pass));
        let sums = [Role::GradProjection, Role::GradBias];
        let added = |role: &Role| {
            let is_wide = *role != Role::GradProjection || !self.narrow_grad_projection;
            self.gives(*role, pass, has_bias) && is_wide
        };
        known.extend(sums.iter().filter(|role| added(role)));
        expect_args(shards::checked_as(pass), args, &known, describe)?;
        let all = [Role::Grad, Role::GradProjection, Role::GradBias];
        if pass.has_grad() && !all.into_iter().any(|role| self.gives(role, pass, has_bias)) {
            return Err(Error::Value {
                argument: "freeze_input",
                expected: "a gradient that is not frozen".into(),
                actual: "none".into(),
            });
        }
        let of_grad = [("in_place", args.in_place), ("zero_padding", args.zero_padding)];
        let asked = of_grad.into_iter().find(|&(_, is_asked)| is_asked && self.freeze_input);
        if let Some((argument, _)) = asked {
            return Err(Error::Unexpected { argument, op: describe() });
        }

        let input = args.input();
        expect_dtype(Role::Input, input, &FLOATS)?;
        let projection = args.required(Role::Projection, describe)?;
        expect_dtype(Role::Projection, projection, &[input.dtype()])?;
        let shape = LinearShape::of(args)?;
        let LinearShape { rows: count, classes, .. } = shape;
        if !input.is_contiguous() && input.shape().len() != 2 {
            return Err(Error::Value {
                argument: Role::Input.name(),
                expected: "a row stride only of hidden states [N, D]".into(),
                actual: input.to_string(),
            });
        }
        let rows = &input.shape()[..input.shape().len() - 1];
        let target = args.required(Role::Target, describe)?;
        expect_dtype(Role::Target, target, &[DType::I32, DType::I64])?;
        expect_shape(Role::Target, target, rows)?;
        for role in [Role::Bias, Role::Weight, Role::GradBias] {
            if let Some(layout) = args.get(role) {
                expect_dtype(role, layout, &[DType::F32])?;
                expect_shape(role, layout, &[classes])?;
            }
        }
        if let Some(layout) = args.get(Role::GradProjection) {
            expect_dtype(Role::GradProjection, layout, &[DType::F32])?;
            expect_shape(Role::GradProjection, layout, projection.shape())?;
        }
        expect_upstream(args, self.loss.reduction, rows, DType::F32)?;
        let state = self.loss.expect_state(args, count)?;
        self.loss.expect_shard(pass, args, classes, count, describe)?;
        self.expect_workspace(shape)?;

        let given = |role, layout: Layout| {
            // a sum lies where what it is added to does
            let layout = args.get(role).cloned().unwrap_or(layout);
            self.gives(role, pass, has_bias).then_some(layout)
        };
        let stored = if self.narrow_grad_projection { projection.dtype() } else { DType::F32 };
        let loss = pass.has_loss().then(|| loss_layout(self.loss.reduction, rows));
        let state = (pass.has_loss() && self.loss.keep_state).then_some(state);
        let row_outputs = self.loss.rows(pass, true);
        let row_outputs = row_outputs.map(|(role, dtype)| (role, Layout::new(rows, dtype)));
        Ok(row_outputs
            .collect::<Output<_>>()
            .with_some(Role::Loss, loss)
            .with_some(Role::Grad, grad_layout(pass, args).filter(|_| !self.freeze_input))
            .with_some(
                Role::GradProjection,
                given(Role::GradProjection, Layout::new(projection.shape(), stored)),
            )
            .with_some(Role::GradBias, given(Role::GradBias, Layout::new(&[classes], DType::F32)))
            .with_some(Role::State, state)
            .with_partials(pass, count, true))
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        let classes = LinearShape::of(&args.layouts())?.classes;
        expect_class_values_of(self.loss.all_classes(classes), args, self.loss.ignore_index)
    }

    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        let mut program = Program::new(&profile.limits);
        Linear::of(self, pass, args, outputs, profile)?.push(&mut program, profile)?;
        Ok(program)
    }

    fn promise(&self, role: Role) -> Tolerance {
        self.loss.promise(role)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::linear_cross_entropy(self, pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        crate::cpu::linear_cross_entropy(self, args, output)
    }
}

impl LinearCrossEntropy {
    /// Refuses a workspace that does not hold one row.
    fn expect_workspace(&self, shape: LinearShape) -> Result<()> {
        let least = shape.least_workspace();
        if u64::try_from(self.workspace_bytes).is_ok_and(|bytes| bytes >= least) {
            return Ok(());
        }
        Err(Error::Value {
            argument: "workspace_bytes",
            expected: format!("at least {least}, for one row of {} classes", shape.classes),
            actual: self.workspace_bytes.to_string(),
        })
    }
}

/// The matrices of a call, and the blocks in which it works on them.
struct Linear<'a> {
    op: &'a LinearCrossEntropy,
    pass: Pass,
    shape: LinearShape,
    input: Matrix,
    projection: Matrix,
    bias: Option<View>,
    grad: Option<Matrix>,
    grad_projection: Option<Matrix>,
    grad_bias: Option<View>,
    /// Whether the last two are added to what is there.
    adds: [bool; 2],
    /// What the rows' losses need beside the logits.
    per_row: RowOperands,
    /// The most rows of a block, and the most classes of one dispatch.
    block_rows: u64,
    chunk_classes: u64,
    /// Whether a block's logits are stored, and not only their rows' partials.
    stores_logits: bool,
    /// The classes of a tile, a share of a row's.
    tile_classes: u64,
}

/// Memory for one block after the other.
struct Workspace {
    /// Of logits, or of their rows' partials.
    logits: Option<Matrix>,
    partials: Option<Partials>,
    input: Option<Matrix>,
    projection: Option<Matrix>,
    grad: Option<Matrix>,
    grad_projection: Option<Matrix>,
}

impl<'a> Linear<'a> {
    fn of(
        op: &'a LinearCrossEntropy,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Self> {
        let shape = LinearShape::of(args)?;
        let [rows, dims, classes] = [shape.rows, shape.dims, shape.classes].map(|n| n as u64);
        let argument = |role| args.required(role, || op.name().into());
        let result = |role| outputs.get(role).map(|layout| View::of(role, layout));
        let target = View::of(Role::Target, argument(Role::Target)?);
        let mut per_row = RowOperands::of(args, outputs, RowTarget::Classes(target));
        per_row.row_outputs = op.loss.row_output_views(pass, outputs);
        let mut linear = Linear {
            op,
            pass,
            shape,
            input: Matrix::of(View::of(Role::Input, args.input()), rows, dims),
            projection: Matrix::of(
                View::of(Role::Projection, argument(Role::Projection)?),
                classes,
                dims,
            ),
            bias: args.get(Role::Bias).map(|layout| View::of(Role::Bias, layout)),
            grad: grad_view(args, outputs).map(|view| Matrix::of(view, rows, dims)),
            grad_projection: result(Role::GradProjection)
                .map(|view| Matrix::of(view, classes, dims)),
            grad_bias: result(Role::GradBias),
            adds: [Role::GradProjection, Role::GradBias].map(|role| args.get(role).is_some()),
            per_row,
            block_rows: 1,
            chunk_classes: 4,
            stores_logits: true,
            tile_classes: 4,
        };
        linear.stores_logits = !linear.finds_partials(profile);
        linear.fit(profile);
        if !linear.stores_logits && linear.shares() > classes.div_ceil(linear.tile_classes) {
            // so few classes fit that tiles would be cut to them, and partials take more than was counted
            linear.stores_logits = true;
            linear.fit(profile);
        }
        Ok(linear)
    }

    /// Whether the products' own epilogue can find all that a pass asks of logits.
    fn finds_partials(&self, profile: &DeviceProfile) -> bool {
        let launch = profile.for_products();
        let classes = self.shape.classes as u64;
        !self.pass.has_grad()
            && kernel::rows_of_product(launch.launch.team).is_some()
            && self.shape.dims as u64 <= launch.max_terms
            && classes.div_ceil(launch.columns.into()) < profile.max_merges()
            && self.loss_of(None, 0, None).may_split()
    }

    /// Chooses blocks that the workspace and bindings hold.
    ///
    /// Every block reads the projection, and reads and writes its gradient, so a block has as many rows as there is room
    /// for, up to some thousands, where that costs little beside the products.
    fn fit(&mut self, profile: &DeviceProfile) {
        const MOST_ROWS: u64 = 4096;
        // of one dispatch, so that a slow device answers in between
        const MULTIPLICATIONS: u64 = 1 << 37;
        let workspace = self.op.workspace_bytes as u64;
        let binding = profile.limits.chunk_bytes();
        let launch = profile.for_products();
        let [logits, dims] = self.shape.padded_bytes();
        let classes = self.shape.classes as u64;
        // dispatches end with a tile, where that is little enough
        let step = u64::from(launch.columns).max(64);
        self.tile_classes = launch.columns.into();
        let stored = match self.stores_logits {
            true => logits,
            false => classes.div_ceil(self.tile_classes) * 32,
        };
        let copies = u64::from(!self.input.is_wide()) + u64::from(self.narrows_grad());
        let per_row = stored + copies * dims;

        // the projection's rows and those of its gradient, in f32 or as they are stored
        let as_stored = self.projection.stride * self.projection.dtype().size() as u64;
        let mut bytes = launch.max_projection_bytes.min(binding * dims / as_stored.max(dims));
        if !self.projection.is_wide() {
            bytes = bytes.min(workspace / 4).min(workspace.saturating_sub(per_row));
        }
        let of_classes = |bytes: u64| (bytes / dims).min(classes);
        let whole = |count: u64| if count == classes { classes } else { rounded(count, step, 4) };
        let copied = if self.projection.is_wide() { 0 } else { whole(of_classes(bytes)) * dims };
        let row_bytes = |matrix: &Matrix| matrix.stride * matrix.dtype().size() as u64;
        let of_input = [Some(&self.input), self.grad.as_ref()].into_iter().flatten().map(row_bytes);
        let widest = of_input.chain([stored, dims]).max().unwrap_or(logits);
        let rows = (workspace.saturating_sub(copied) / per_row).min(binding / widest);
        let rows = rounded(rows.min(MOST_ROWS), launch.rows.into(), 1);
        // blocks of about one size
        let all = (self.shape.rows as u64).max(1);
        let blocks = all.div_ceil(rows);
        let even = all.div_ceil(blocks).next_multiple_of(launch.rows.into());
        self.block_rows = even.min(rows).min(all);
        let by_time = MULTIPLICATIONS / (self.block_rows * self.shape.dims as u64).max(1);
        self.chunk_classes = whole(of_classes(bytes).min(by_time));
    }

    /// Whether the input's gradient is summed in f32 before it is stored.
    fn narrows_grad(&self) -> bool {
        self.grad.as_ref().is_some_and(|grad| grad.dtype() != DType::F32)
    }

    fn push(&self, program: &mut Program, profile: &DeviceProfile) -> Result<()> {
        let LinearShape { rows, classes, .. } = self.shape;
        let rows = rows as u64;
        if !self.pass.has_grad() && self.per_row.given_partials.is_some() {
            // they tell all of the rows
            return self.loss_of(None, rows, None).push(program, profile);
        }
        let workspace = self.workspace(program);
        let loss = self.loss_of(None, rows, workspace.partials.as_ref());
        let mut results = loss.begin(classes, rows, program, profile)?;
        if let (true, Some(wide)) = (self.is_one_chunk(), &workspace.projection) {
            // there is room for all of it, for all blocks
            program.widen(&self.projection, wide)?;
        }
        let mut blocks: Vec<_> = chunks(rows, self.block_rows).collect();
        if blocks.is_empty() && self.pass.has_grad() {
            // gradients of nothing are zeros, which are to be written too
            blocks.push([0, 0]);
        }
        for block in blocks {
            self.push_block(block, &workspace, &mut results, program, profile)?;
        }
        if let (Some(wide), Some(grad)) = (&workspace.grad_projection, &self.grad_projection) {
            for chunk in self.classes() {
                program.narrow(&wide.rows(chunk), &grad.rows(chunk))?;
            }
        }
        loss.finish(rows, results, program, profile)
    }

    fn push_block(
        &self,
        block: [u64; 2],
        workspace: &Workspace,
        results: &mut RowResults,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<()> {
        let [first, count] = block;
        let mut input = self.input.rows(block);
        if let Some(wide) = &workspace.input {
            let wide = wide.rows([0, count]);
            if count > 0 {
                program.widen(&input, &wide)?;
            }
            input = wide;
        }
        let logits = workspace.logits.as_ref().map(|logits| logits.rows([0, count]));
        let loss = self.loss_of(logits.as_ref(), count, workspace.partials.as_ref());
        for chunk in self.classes().filter(|_| count > 0) {
            let projection = self.some_projection(chunk, workspace, program)?;
            let bias = self.bias.as_ref().map(|bias| Program::bias_of(bias, chunk));
            match (&logits, &workspace.partials) {
                (Some(logits), _) => {
                    let operands = [&input, &projection, &logits.columns(chunk)];
                    program.product(profile, Form::Nt, operands, bias, false)?;
                }
                (None, Some(partials)) => {
                    let epilogue = Epilogue {
                        loss: &loss,
                        partials,
                        first_share: chunk[0] / self.chunk_classes * self.shares_of_chunk(),
                        first_class: chunk[0],
                        first_row: first,
                    };
                    program.partials(profile, [&input, &projection], bias, &epilogue)?;
                }
                (None, None) => {}
            }
        }
        if count > 0 {
            loss.push_rows(first, results, program, profile)?;
        }
        match logits {
            Some(logits) if self.pass.has_grad() => {
                self.gradients(block, [&logits, &input], workspace, program, profile)
            }
            _ => Ok(()),
        }
    }

    /// How many tiles the classes of one dispatch have.
    fn shares_of_chunk(&self) -> u64 {
        self.chunk_classes.min(self.shape.classes as u64).div_ceil(self.tile_classes)
    }

    /// How many tiles all classes have.
    fn shares(&self) -> u64 {
        let last = self.shape.classes as u64 % self.chunk_classes;
        self.shape.classes as u64 / self.chunk_classes * self.shares_of_chunk()
            + last.div_ceil(self.tile_classes)
    }

    /// The gradients of a block, from that of its logits.
    fn gradients(
        &self,
        block: [u64; 2],
        [logits, input]: [&Matrix; 2],
        workspace: &Workspace,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<()> {
        let [first, count] = block;
        // the input's gradient comes last, since it may be written over the input
        for chunk in self.classes() {
            let of_logits = logits.columns(chunk);
            let [adds_projection, adds_bias] = self.adds.map(|adds| adds || first > 0);
            let sums = workspace.grad_projection.as_ref().or(self.grad_projection.as_ref());
            if let Some(sums) = sums {
                let operands = [&of_logits, input, &sums.rows(chunk)];
                program.product(profile, Form::Tn, operands, None, adds_projection)?;
            }
            if let Some(sums) = &self.grad_bias {
                program.column_sums(&of_logits, sums, chunk[0], adds_bias)?;
            }
        }
        let Some(grad) = &self.grad else { return Ok(()) };
        if count == 0 {
            return Ok(());
        }
        let wide = workspace.grad.as_ref().map(|wide| wide.rows([0, count]));
        for chunk in self.classes() {
            let projection = self.some_projection(chunk, workspace, program)?;
            let sums = wide.clone().unwrap_or_else(|| grad.rows(block));
            let operands = [&logits.columns(chunk), &projection, &sums];
            program.product(profile, Form::Nn, operands, None, chunk[0] > 0)?;
        }
        match &wide {
            Some(wide) => program.narrow(wide, &grad.rows(block)),
            None => Ok(()),
        }
    }

    /// The classes of each dispatch: first and count.
    fn classes(&self) -> impl Iterator<Item = [u64; 2]> + use<> {
        chunks(self.shape.classes as u64, self.chunk_classes)
    }

    /// Whether each dispatch works on all classes.
    fn is_one_chunk(&self) -> bool {
        self.chunk_classes >= self.shape.classes as u64
    }

    /// The projection's rows of some classes, as products read them.
    fn some_projection(
        &self,
        chunk: [u64; 2],
        workspace: &Workspace,
        program: &mut Program,
    ) -> Result<Matrix> {
        let rows = self.projection.rows(chunk);
        let Some(wide) = &workspace.projection else { return Ok(rows) };
        let wide = wide.rows([0, chunk[1]]);
        if !self.is_one_chunk() {
            program.widen(&rows, &wide)?;
        }
        Ok(wide)
    }

    fn workspace(&self, program: &mut Program) -> Workspace {
        let LinearShape { dims, classes, .. } = self.shape;
        let partials = (!self.stores_logits).then(|| {
            let shares = self.shares();
            let view = program.scratch_f32(self.block_rows * shares * 8);
            Partials { view, shares: shares as u32, of_block: true }
        });
        let mut matrix = |rows: u64, columns: usize| {
            let stride = columns.next_multiple_of(4) as u64;
            let view = program.scratch_f32(rows * stride);
            Matrix { view, first: 0, stride, rows, columns: columns as u64 }
        };
        let is_narrow = |grad: &&Matrix| grad.dtype() != DType::F32;
        Workspace {
            logits: self.stores_logits.then(|| matrix(self.block_rows, classes)),
            partials,
            input: (!self.input.is_wide()).then(|| matrix(self.block_rows, dims)),
            projection: (!self.projection.is_wide()).then(|| matrix(self.chunk_classes, dims)),
            grad: self.narrows_grad().then(|| matrix(self.block_rows, dims)),
            grad_projection: self
                .grad_projection
                .as_ref()
                .filter(is_narrow)
                .map(|_| matrix(classes as u64, dims)),
        }
    }

    /// The losses of some rows, and their gradient over the logits, if these are stored; from partials, if there
    /// are any.
    fn loss_of(&self, logits: Option<&Matrix>, rows: u64, partials: Option<&Partials>) -> RowLoss {
        let layout = Layout::new(&[rows as usize, self.shape.classes], DType::F32);
        let input = match logits {
            Some(Matrix { view, stride, .. }) => {
                View { slot: view.slot, layout: layout.with_row_stride(*stride as usize) }
            }
            // nobody reads them
            None => View { slot: Slot::Placeholder, layout },
        };
        let grad = self.pass.has_grad().then(|| input.clone());
        let mut operands = RowOperands { input, grad, ..self.per_row.clone() };
        operands.given_partials = partials.cloned().or(operands.given_partials);
        self.op.loss.row_loss(self.pass, operands)
    }
}

/// The largest multiple of `step` up to a count, or, below that, of `least`; at least that.
fn rounded(count: u64, step: u64, least: u64) -> u64 {
    let step = if count >= step { step } else { least };
    (count / step * step).max(least)
}
