//! Every op with arguments of its own, on the device wherever a test wants them: in buffers of their
//! own, or in one arena whose every other byte is watched.

use wgloss::options::{Family, Numbers, Target, Value};
use wgloss::wgpu::{self, BufferUsages};
use wgloss::{
    Args, Array, CrossEntropy, DType, Gpu, Layout, LinearCrossEntropy, NllLoss, Op, Output, Pass,
    Plan, Reduction, Role, Tensor, reference,
};

use crate::call::with_argument;
use crate::compare::compare_part;
use crate::ops;
use crate::random::Random;

/// Arguments by role, the input first.
pub type Named<T> = Vec<(Role, T)>;

/// A pass of an op over arguments.
pub struct Job {
    pub op: Box<dyn Op>,
    pub pass: Pass,
    pub args: Named<Array<'static>>,
}

/// Numbers in a storage type, rounded to it.
pub fn array(values: &[f32], shape: &[usize], dtype: DType) -> Array<'static> {
    Array::from_vec(values.to_vec(), shape).unwrap().to_dtype(dtype).unwrap()
}

/// Arguments from their roles.
pub fn args<T>(parts: impl IntoIterator<Item = (Role, T)>) -> Args<T> {
    let mut parts = parts.into_iter();
    let (_, input) = parts.next().expect("an input");
    parts.fold(Args::new(input), |args, (role, part)| with_argument(args, role, part))
}

/// Every op with the most arguments that it takes, over an input of this shape, which has a
/// dimension of classes. Maps have no reduction: they are left out but for none.
pub fn every_op(shape: &[usize], dtype: DType, reduction: Reduction, pass: Pass) -> Vec<Job> {
    let count: usize = shape.iter().product();
    let (classes, rest) = (shape[1], [&shape[..1], &shape[2..]].concat());
    let rows: usize = rest.iter().product();
    let mut random = Random::new(77);
    let normals = array(&random.normals(count, 2.0), shape, dtype);
    let numbers = array(&random.normals(count, 2.0), shape, dtype);
    let units = array(&random.uniforms(count, 0.0, 1.0), shape, dtype);
    let probabilities = array(&random.uniforms(count, 0.0, 1.0), shape, dtype);
    let counts: Vec<f32> = (0..count).map(|i| (i % 7) as f32).collect();
    let counts = array(&counts, shape, dtype);
    let target = random.targets(rows, classes, -100, 0.2);
    let target = Array::from_vec(target, &rest).unwrap();
    let class_weight = array(&random.eighths(classes), &[classes], DType::F32);
    let weight = array(&random.eighths(count), shape, DType::F32);
    // one for each class, whatever comes after it
    let ones = vec![1; shape.len() - 2];
    let pos_weight = array(&random.eighths(classes), &[&[classes], &ones[..]].concat(), DType::F32);
    let one = array(&random.normals(1, 1.0), &[], DType::F32);
    let per_row = array(&random.normals(rows, 1.0), &rest, dtype);
    let per_element = array(&random.normals(count, 1.0), shape, dtype);
    let upstream = |of_none: &Array<'static>| match reduction {
        Reduction::None => of_none.clone(),
        _ => one.clone(),
    };

    let mut jobs = Vec::new();
    let mut add = |op: Box<dyn Op>, upstream: Array<'static>, parts: Named<&Array<'static>>| {
        let parts = parts.into_iter().map(|(name, part)| (name, part.clone()));
        let upstream = pass.has_grad().then_some((Role::Upstream, upstream));
        jobs.push(Job { op, pass, args: parts.chain(upstream).collect() });
    };
    let entropy = CrossEntropy::default().reduction(reduction);
    add(
        Box::new(entropy.clone().label_smoothing(0.1).z_loss(0.01).row_outputs(true)),
        upstream(&per_row),
        vec![(Role::Input, &normals), (Role::Target, &target), (Role::Weight, &class_weight)],
    );
    let plain = vec![(Role::Input, &normals), (Role::Target, &target)];
    add(Box::new(entropy.clone().keep_state(true)), upstream(&per_row), plain);
    add(
        Box::new(entropy),
        upstream(&per_row),
        vec![
            (Role::Input, &normals),
            (Role::Target, &probabilities),
            (Role::Weight, &class_weight),
        ],
    );
    add(
        Box::new(NllLoss::default().reduction(reduction)),
        upstream(&per_row),
        vec![(Role::Input, &normals), (Role::Target, &target), (Role::Weight, &class_weight)],
    );
    let has_elements = |family| !matches!(family, Family::RowLoss | Family::LinearLoss);
    let rest = ops::of(|kind| has_elements(kind.family)).flat_map(ops::variants);
    for mut op in rest {
        let kind = op.kind();
        if !kind.family.is_loss() && reduction != Reduction::None {
            continue;
        }
        if kind.family == Family::RowMap {
            op.set("dim", Value::Integer(1)).unwrap();
        }
        let of = |what| match what {
            Numbers::Probabilities => &probabilities,
            Numbers::Counts => &counts,
            _ => &numbers,
        };
        // weights of their own, and those that are broadcast
        let (own, broadcast) = (Some(&weight), Some(&pos_weight));
        let weight = if kind.pos_weight { own } else { broadcast };
        let target = match kind.target {
            Some(Target::Numbers(target, _)) => Some(of(target)),
            _ => None,
        };
        let input = match kind.input {
            Numbers::Probabilities => &units,
            Numbers::Counts => &counts,
            _ => &normals,
        };
        let given = [
            (Role::Input, Some(input)),
            (Role::Target, target),
            (Role::Weight, weight.filter(|_| kind.weight.is_some())),
            (Role::PosWeight, broadcast.filter(|_| kind.pos_weight)),
        ];
        let given = given.into_iter().filter_map(|(role, part)| Some((role, part?)));
        add(ops::reduced(op, reduction), upstream(&per_element), given.collect());
    }
    jobs.extend(linear(shape, dtype, reduction, pass));
    jobs
}

/// Linear cross entropy of hidden states of this shape, of as many classes as no dimension has: with all of
/// its arguments, and plain with a state kept and gradients of the projection's type.
fn linear(shape: &[usize], dtype: DType, reduction: Reduction, pass: Pass) -> [Job; 2] {
    const CLASSES: usize = 23;
    let mut random = Random::new(78);
    let (&dims, rows) = shape.split_last().expect("a dimension of numbers");
    let (count, of_rows) = (shape.iter().product(), rows.iter().product());
    let input = array(&random.normals(count, 1.0), shape, dtype);
    let deviation = 3.0 / (dims as f64).sqrt();
    let w = array(&random.normals(CLASSES * dims, deviation), &[CLASSES, dims], dtype);
    let target = Array::from_vec(random.targets(of_rows, CLASSES, -100, 0.2), rows).unwrap();
    let f32 = |random: &mut Random, shape: &[usize]| {
        array(&random.normals(shape.iter().product(), 1.0), shape, DType::F32)
    };
    let bias = f32(&mut random, &[CLASSES]);
    let weight = array(&random.eighths(CLASSES), &[CLASSES], DType::F32);
    let upstream = f32(&mut random, if reduction == Reduction::None { rows } else { &[] });
    let sums = [
        (Role::GradProjection, f32(&mut random, &[CLASSES, dims])),
        (Role::GradBias, f32(&mut random, &[CLASSES])),
    ];
    let loss = CrossEntropy::default().reduction(reduction);
    let plain = vec![(Role::Input, input), (Role::Projection, w), (Role::Target, target)];
    let upstream = pass.has_grad().then_some((Role::Upstream, upstream));
    let mut all = plain.clone();
    all.extend([(Role::Bias, bias), (Role::Weight, weight)]);
    all.extend(upstream.clone());
    all.extend(sums.into_iter().filter(|_| pass.has_grad()));
    let plain = plain.into_iter().chain(upstream).collect();
    let with_all = loss.clone().label_smoothing(0.1).z_loss(0.01).row_outputs(true);
    let kept = LinearCrossEntropy::new(loss.keep_state(true)).narrow_grad_projection(true);
    [
        Job { op: Box::new(LinearCrossEntropy::new(with_all)), pass, args: all },
        Job { op: Box::new(kept), pass, args: plain },
    ]
}

impl Job {
    /// The pass, the storage type and the op with its options.
    pub fn name(&self) -> String {
        format!("{}.{} of {:?}", self.pass.name(), self.args[0].1.dtype(), self.op)
    }

    /// The arguments on the host.
    pub fn host_args(&self) -> Args<Array<'static>> {
        args(self.args.clone())
    }

    /// The results, with every tensor in a contiguous buffer of its own: the arrays of each part.
    pub fn run_apart(&self, gpu: &Gpu) -> Named<Array<'static>> {
        let args = gpu.block_on(gpu.upload_args(&self.host_args())).unwrap();
        let output = gpu
            .block_on(gpu.run(&*self.op, self.pass, &args))
            .unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        let read = |(role, part)| (role, gpu.block_on(gpu.read(part)).unwrap());
        output.iter().map(read).collect()
    }
}

/// Holds what a job computed to the promise, each part that the reference has. For reduction none.
#[track_caller]
pub fn judge(job: &Job, got: &Output<Array<'_>>) {
    let args = job.host_args();
    let want = reference::run(&*job.op, job.pass, &args).unwrap();
    let upstream = job.args.iter().find(|(role, _)| *role == Role::Upstream);
    let largest = upstream.map_or(1.0, |(_, upstream)| {
        upstream.to_f64().into_iter().fold(0.0, |most: f64, g| most.max(g.abs()))
    });
    for role in Role::ALL.into_iter().filter(|role| *role != Role::State) {
        let is_grad = matches!(role, Role::Grad | Role::GradProjection | Role::GradBias);
        let scale = if is_grad { largest } else { 1.0 };
        let bound = job.op.promise(role).scaled(scale);
        match (want.get(role), got.get(role)) {
            (None, None) => {}
            (Some(want), Some(got)) => {
                assert_eq!(got.shape(), want.shape, "{}: {role}", job.name());
                let result = compare_part(role, got, want, bound);
                result.unwrap_or_else(|error| panic!("{}: {role}: {error}", job.name()));
            }
            (want, got) => panic!("{}: {role}: got {got:?}, want {want:?}", job.name()),
        }
    }
}

/// A layout with another offset, row stride and nothing else.
pub fn moved(layout: &Layout, offset: usize, row_stride: usize) -> Layout {
    Layout::new(layout.shape(), layout.dtype()).with_offset(offset).with_row_stride(row_stride)
}

/// What an arena's bytes are before anything is put there.
fn pattern(i: usize) -> u8 {
    (i * 37 + 11) as u8
}

/// A caller's buffer, and what it should hold.
pub struct Arena {
    bytes: Vec<u8>,
    unit: usize,
}

impl Arena {
    /// Starts with some bytes that belong to nobody. Tensors begin at multiples of `unit` elements.
    pub fn new(unit: usize) -> Self {
        Arena { bytes: (0..6).map(pattern).collect(), unit }
    }

    /// Takes the next free place for a tensor, right behind the last one, with `padding` elements
    /// after each index of its first dimension.
    pub fn place(&mut self, layout: &Layout, padding: usize) -> Layout {
        let size = layout.dtype().size();
        // row state is read in fours
        let is_state = layout.shape().len() == 2 && layout.shape()[1] == 4;
        let unit = if is_state { 4 } else { self.unit };
        let offset = self.bytes.len().next_multiple_of(unit * size) / size;
        let placed = moved(layout, offset, layout.row_stride() + padding);
        let rows = layout.shape().first().copied().unwrap_or(1);
        let end = offset + (rows - 1) * placed.row_stride() + layout.elements() / rows;
        self.bytes.extend((self.bytes.len()..end * size).map(pattern));
        placed
    }

    /// Puts an array where its layout says.
    pub fn put(&mut self, layout: &Layout, array: &Array<'_>) {
        let size = layout.dtype().size();
        let bytes = array.data().bytes();
        let row = bytes.len() / layout.shape().first().copied().unwrap_or(1);
        for (i, row) in bytes.chunks(row).enumerate() {
            let at = (layout.offset() + i * layout.row_stride()) * size;
            self.bytes[at..at + row.len()].copy_from_slice(row);
        }
    }

    /// The buffer.
    pub fn upload(&self, gpu: &Gpu) -> wgpu::Buffer {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("the caller's arena"),
            size: bytes.len() as u64,
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&buffer, 0, &bytes);
        buffer
    }

    /// Holds the buffer to what should be there, to the last byte.
    #[track_caller]
    pub fn expect(&self, gpu: &Gpu, buffer: &wgpu::Buffer, what: &str) {
        let words = self.bytes.len().div_ceil(4);
        let all = Layout::new(&[words], DType::I32);
        let all = Tensor::from_buffer(buffer.clone(), all).unwrap();
        let all = gpu.block_on(gpu.read(&all)).unwrap();
        let got = &all.data().bytes()[..self.bytes.len()];
        if let Some(i) = (0..got.len()).find(|&i| got[i] != self.bytes[i]) {
            let start = i / 4 * 4;
            let end = got.len().min(start + 16);
            panic!(
                "{what}: bytes {start}..{end}: got {:02x?}, want {:02x?}",
                &got[start..end],
                &self.bytes[start..end]
            );
        }
    }
}

/// Submits a plan.
pub fn submit(plan: &Plan, gpu: &Gpu, args: &Args<Tensor>, output: &Output<Tensor>) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    plan.bind(args, output).unwrap().encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

/// Where a job's tensors are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Where {
    /// Each somewhere in a buffer of its own.
    Apart,
    /// All in one buffer.
    OneBuffer,
    /// All in one buffer, and the gradient over the input.
    InPlace,
}

/// Where in its buffers a tensor begins, and how many elements lie between rows.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// Tensors begin at a multiple of so many elements.
    pub unit: usize,
    pub padding: usize,
}

/// Anywhere: in 16 bits, in the middle of a word.
pub const ODD: Places = Places { unit: 1, padding: 2 };
/// Where four elements can be taken together.
pub const ALIGNED: Places = Places { unit: 4, padding: 4 };
/// One behind the other.
pub const CONTIGUOUS: Places = Places { unit: 1, padding: 0 };

/// Runs a job in the caller's buffers, and holds all of their bytes to the run apart. Tensors of the
/// input's shape are padded.
#[track_caller]
pub fn check_in(memory: Where, gpu: &Gpu, job: &Job, places: Places) {
    let what = format!("{} {memory:?} {places:?}", job.name());
    let want = job.run_apart(gpu);
    let mut arenas = vec![Arena::new(places.unit)];
    let mut place = |role, array: &Array<'_>| {
        if memory == Where::Apart {
            arenas.push(Arena::new(places.unit));
        }
        // weights are contiguous, whatever their shape
        let is_padded = ![Role::Weight, Role::Projection, Role::GradProjection].contains(&role)
            && array.shape() == job.args[0].1.shape();
        let padding = if is_padded { places.padding } else { 0 };
        let last = arenas.len() - 1;
        (role, (last, arenas[last].place(array.layout(), padding)))
    };
    let inputs: Vec<_> = job.args.iter().map(|(role, array)| place(*role, array)).collect();
    let results: Vec<_> = want
        .iter()
        .map(|(role, array)| match (*role, memory) {
            (Role::Grad, Where::InPlace) => (Role::Grad, inputs[0].1.clone()),
            (role, _) => match inputs.iter().find(|(input, _)| *input == role) {
                // what a gradient is added to is where it is
                Some((_, place)) => (role, place.clone()),
                None => place(role, array),
            },
        })
        .collect();
    for ((_, (arena, layout)), (_, array)) in inputs.iter().zip(&job.args) {
        arenas[*arena].put(layout, array);
    }
    let buffers: Vec<_> = arenas.iter().map(|arena| arena.upload(gpu)).collect();

    let of_args = |args: Args<Tensor>| match memory {
        Where::Apart | Where::OneBuffer => args,
        Where::InPlace => args.in_place(),
    };
    let wrap = |(role, (arena, layout)): &(Role, (usize, Layout))| {
        (*role, Tensor::from_buffer(buffers[*arena].clone(), layout.clone()).unwrap())
    };
    let tensors = of_args(args(inputs.iter().map(wrap)));
    let all: Output<Tensor> = results.iter().map(wrap).collect();
    let layouts = all.iter().map(|(role, tensor)| (role, tensor.layout().clone())).collect();
    let plan = gpu.block_on(gpu.plan_into(&*job.op, job.pass, &tensors.layouts(), &layouts));
    let plan = plan.unwrap_or_else(|error| panic!("{what}: {error}"));
    submit(&plan, gpu, &tensors, &all);

    for ((_, (arena, layout)), (_, array)) in results.iter().zip(&want) {
        arenas[*arena].put(layout, array);
    }
    for (arena, buffer) in arenas.iter().zip(&buffers) {
        arena.expect(gpu, buffer, &what);
    }
    // and what is read back is the array that it is
    for ((role, got), (_, want)) in all.iter().zip(&want) {
        let got = gpu.block_on(gpu.read(got)).unwrap();
        assert_eq!(got.data().bytes(), want.data().bytes(), "{what}: {role}");
    }
}
