//! Plans bound to buffers.

use super::{Compiled, CompiledStep, Plan, expect_same};
#[cfg(not(target_arch = "wasm32"))]
use crate::guard::{first_of, scoped};
use crate::kernel::Kernel;
use crate::program::{BLOCK_BYTES, Slot};
use crate::{Args, Error, Gpu, Layout, Output, Result, Role, Status, Tensor};

/// A [`Plan`] over fixed buffers: encoding it creates nothing and allocates nothing.
#[derive(Debug, Clone)]
pub struct BoundPlan {
    commands: Vec<BoundCommand>,
    /// The control block, where a dispatch has to find it clear.
    control: Option<wgpu::Buffer>,
}

#[derive(Debug, Clone)]
enum BoundCommand {
    Dispatch {
        label: String,
        pipeline: wgpu::ComputePipeline,
        group: wgpu::BindGroup,
        workgroups: [u32; 3],
    },
    Copy {
        from: (wgpu::Buffer, u64),
        to: (wgpu::Buffer, u64),
        bytes: u64,
    },
}

/// The tensors of a call by their roles: in place, the gradient is the input.
struct Tensors<'a> {
    args: &'a Args<Tensor>,
    output: &'a Output<Tensor>,
}

impl<'a> Tensors<'a> {
    fn get(&self, role: Role) -> Option<&'a Tensor> {
        // the row state is an argument of backward and a result of forward
        self.args.get(role).or_else(|| self.output.get(role))
    }
}

impl Plan {
    /// Fixes the buffers that it works on.
    ///
    /// Arguments and results may be ranges of one buffer, as frameworks hand them out that allocate
    /// from large buffers; a kernel then declares as writable what lies in a buffer that it writes
    /// to. Results overlap nothing else, from their first element to their last, what lies between
    /// rows included, and the last row's padding where zeros are written to it. In place, the gradient is the input, and need be no part of the output.
    ///
    /// # Errors
    /// - [`Error::Shape`], [`Error::DType`], [`Error::Missing`] or [`Error::Unexpected`] when an
    ///   argument or output is not as planned.
    /// - [`Error::Value`] when one lies otherwise in its buffer (an offset may differ by multiples of
    ///   256 bytes, or of the device's `min_storage_buffer_offset_alignment`), when they overlap, or
    ///   when a buffer that is copied from or to lacks `COPY_SRC` or `COPY_DST`.
    /// - [`Error::Value`] also when one is another [`Gpu`]'s.
    /// - [`Error::Validation`] for what wgpu finds wrong with the buffers themselves, such as that
    ///   they are another device's; in browsers, which answer later, that comes through the
    ///   device's error scopes.
    pub fn bind(&self, args: &Args<Tensor>, output: &Output<Tensor>) -> Result<BoundPlan> {
        #[cfg(target_arch = "wasm32")]
        return self.bind_unguarded(args, output);
        #[cfg(not(target_arch = "wasm32"))]
        {
            let bind = || self.bind_unguarded(args, output);
            let (bound, scopes) = scoped(self.gpu.device(), bind);
            match pollster::block_on(first_of(scopes)) {
                Some(error) => Err(self.gpu.lost(true).unwrap_or(error)),
                None => bound.map_err(|error| self.gpu.lost(true).unwrap_or(error)),
            }
        }
    }

    /// [`Plan::bind`] for those who watch the device's errors themselves.
    pub(crate) fn bind_unguarded(
        &self,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
    ) -> Result<BoundPlan> {
        for (role, tensor) in args.iter().chain(output.iter()) {
            self.gpu.expect_own(role.name(), tensor.gpu())?;
        }
        self.gpu.expect_own("status", output.status().map(Status::gpu))?;
        let planned = &self.compiled;
        for (argument, planned, given) in [
            ("in_place", planned.args.in_place, args.in_place),
            ("zero_padding", planned.args.zero_padding, args.zero_padding),
        ] {
            if planned != given {
                let (expected, actual) = (format!("{planned}, as planned"), given.to_string());
                return Err(Error::Value { argument, expected, actual });
            }
        }
        for role in Role::ALL {
            let layout = |tensor: Option<&'_ Tensor>| tensor.map(|tensor| tensor.layout().clone());
            let (wanted, given) = (planned.args.get(role), layout(args.get(role)));
            expect_same(role, wanted, given.as_ref(), self.gpu.memory())?;
            let (wanted, given) = (planned.outputs.get(role), layout(output.get(role)));
            if given.is_none() && args.home_of(role).is_some() {
                continue;
            }
            expect_same(role, wanted, given.as_ref(), self.gpu.memory())?;
        }
        self.expect_apart(args, output)?;
        self.expect_room_for_padding(args, output)?;

        let tensors = Tensors { args, output };
        let mut commands = Vec::with_capacity(planned.commands.len());
        for command in &planned.commands {
            match command {
                Compiled::Dispatch(step) => commands.extend(self.bind_step(step, &tensors)?),
                Compiled::Copy(copy) => {
                    let from =
                        self.first_byte(copy.from, &tensors, wgpu::BufferUsages::COPY_SRC)?;
                    let to = self.first_byte(copy.to, &tensors, wgpu::BufferUsages::COPY_DST)?;
                    let (Some(from), Some(to)) = (from, to) else { continue };
                    commands.push(BoundCommand::Copy {
                        from: (from.0.clone(), from.1 + copy.from_offset),
                        to: (to.0.clone(), to.1 + copy.to_offset),
                        bytes: copy.bytes,
                    });
                }
            }
        }
        let has_control = planned
            .steps()
            .flat_map(|step| &step.bindings)
            .any(|binding| binding.slot == Slot::Control);
        let control = has_control.then(|| planned.control.clone());
        Ok(BoundPlan { commands, control })
    }

    /// Binds, encodes and submits, without a wait.
    pub(crate) fn submit(&self, args: &Args<Tensor>, output: &Output<Tensor>) -> Result<()> {
        let bound = self.bind_unguarded(args, output)?;
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        bound.encode(&mut encoder);
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// The buffer in a slot, and where in it the slot's aligned start is. Programs name only what
    /// their arguments and outputs have, which `bind` has seen.
    fn buffer<'a>(
        &'a self,
        slot: Slot,
        is_written: bool,
        tensors: &Tensors<'a>,
    ) -> Option<(&'a wgpu::Buffer, u64)> {
        match slot {
            Slot::Tensor(role) => {
                let tensor = tensors.get(role)?;
                let planned = self.compiled.args.get(role).or(self.compiled.outputs.get(role));
                let start = tensor.layout().start_before(planned?.residual())?;
                Some((tensor.buffer(), start))
            }
            Slot::Control => Some((&self.compiled.control, 0)),
            Slot::Status => Some((tensors.output.status()?.buffer(), 0)),
            Slot::Scratch(index) => self.compiled.scratch.get(index).map(|buffer| (buffer, 0)),
            Slot::Placeholder => Some((self.gpu.placeholder(is_written), 0)),
        }
    }

    /// The buffer in a slot, which must be for this use, and where in it its first element is.
    fn first_byte<'a>(
        &'a self,
        slot: Slot,
        tensors: &Tensors<'a>,
        usage: wgpu::BufferUsages,
    ) -> Result<Option<(&'a wgpu::Buffer, u64)>> {
        let Slot::Tensor(role) = slot else { return Ok(self.buffer(slot, true, tensors)) };
        let Some(tensor) = tensors.get(role) else { return Ok(None) };
        let actual = tensor.buffer().usage();
        if !actual.contains(usage) {
            let names: Vec<_> = usage.iter_names().map(|(name, _)| name).collect();
            let expected = format!("usage {}", names.join(" | "));
            let actual = format!("{actual:?}");
            return Err(Error::Value { argument: role.name(), expected, actual });
        }
        Ok(Some((tensor.buffer(), tensor.byte_range().start)))
    }

    /// A dispatch over buffers; none where it keeps faults in a status that is not there.
    fn bind_step(
        &self,
        step: &CompiledStep,
        tensors: &Tensors<'_>,
    ) -> Result<Option<BoundCommand>> {
        let mut bound = Vec::with_capacity(step.bindings.len());
        for binding in &step.bindings {
            match self.buffer(binding.slot, binding.port.writes, tensors) {
                Some((buffer, start)) => bound.push((binding, buffer, start + binding.start)),
                None if binding.slot == Slot::Status => return Ok(None),
                // a buffer that is missing is a validation error, not a panic
                None => {}
            }
        }
        // a dispatch may use a buffer in one way only, whatever its ranges
        let is_written = |buffer: &wgpu::Buffer| {
            bound.iter().any(|(binding, other, _)| binding.port.writes && *other == buffer)
        };
        let read_write = bound
            .iter()
            .filter(|(binding, buffer, _)| !binding.port.writes && is_written(buffer))
            .fold(0, |bits, (binding, ..)| bits | 1 << binding.port.binding);
        let pipeline = match read_write {
            0 => step.pipeline.clone(),
            read_write => self.gpu.good_pipeline(step.kernel.with_read_write(read_write))?,
        };
        let params = step.params.iter().map(|params| wgpu::BindGroupEntry {
            binding: 0,
            resource: params.as_entire_binding(),
        });
        let buffers = bound.iter().map(|&(binding, buffer, offset)| wgpu::BindGroupEntry {
            binding: binding.port.binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(binding.bytes),
            }),
        });
        let group = self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&step.kernel.label),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &params.chain(buffers).collect::<Vec<_>>(),
        });
        Ok(Some(BoundCommand::Dispatch {
            label: step.kernel.label.clone(),
            pipeline,
            group,
            workgroups: step.workgroups,
        }))
    }

    /// Refuses results that overlap one another or an argument.
    fn expect_apart(&self, args: &Args<Tensor>, output: &Output<Tensor>) -> Result<()> {
        // what is written over an argument may be named, but only as what it is
        for (role, result) in output.iter() {
            if args.home_of(role).is_some_and(|home| home != result) {
                let expected = match role {
                    Role::Grad => "the input itself, in place",
                    _ => "the argument that it is added to",
                };
                let (argument, actual) = (role.name(), "another tensor".into());
                return Err(Error::Value { argument, expected: expected.into(), actual });
            }
        }
        let over_arguments = self.over_arguments(args);
        let results = output.iter().filter(|(role, _)| args.home_of(*role).is_none());
        // from the first element to behind the last one, or behind the last row's padding where zeros
        // are written to it
        let bytes_of = |role: Role, layout: &Layout| {
            let is_padded = role == Role::Grad && args.zero_padding;
            let end = if is_padded { layout.padded_bytes() } else { layout.buffer_bytes() };
            (layout.offset() * layout.dtype().size()) as u64..end
        };
        let mut before: Vec<(Role, &Tensor)> = args.iter().collect();
        for (role, tensor) in results.chain(over_arguments) {
            for &(name, other) in &before {
                if other.buffer() != tensor.buffer() || args.home_role(role) == Some(name) {
                    continue;
                }
                let (a, b) = (bytes_of(name, other.layout()), bytes_of(role, tensor.layout()));
                if a.start.max(b.start) < a.end.min(b.end) {
                    return Err(Error::Value {
                        argument: role.name(),
                        expected: format!("memory apart from {name}, which is at bytes {a:?}"),
                        actual: format!("bytes {b:?} of the same buffer"),
                    });
                }
            }
            before.push((role, tensor));
        }
        Ok(())
    }

    /// What is written over arguments, with the role that it has as a result.
    pub(crate) fn over_arguments<'a>(
        &'a self,
        args: &'a Args<Tensor>,
    ) -> impl Iterator<Item = (Role, &'a Tensor)> {
        let results = self.compiled.outputs.iter();
        results.filter_map(|(role, _)| Some((role, args.home_of(role)?)))
    }

    /// Refuses a gradient whose buffer ends before the last row's padding, where zeros are to be
    /// written to it.
    fn expect_room_for_padding(&self, args: &Args<Tensor>, output: &Output<Tensor>) -> Result<()> {
        let grad = if args.in_place { Some(args.input()) } else { output.get(Role::Grad) };
        let Some(grad) = grad.filter(|_| args.zero_padding) else { return Ok(()) };
        let needed = grad.layout().padded_bytes();
        if grad.buffer().size() >= needed {
            return Ok(());
        }
        Err(Error::Value {
            argument: Role::Grad.name(),
            expected: format!("a buffer of {needed} bytes, with the last row's padding"),
            actual: format!("{} bytes", grad.buffer().size()),
        })
    }
}

impl Gpu {
    /// A pipeline that is known to be good: a kept one, or one compiled now. Error scopes answer at
    /// once where there is no browser; a browser's are the caller's to watch, so that nothing is kept.
    fn good_pipeline(&self, kernel: Kernel) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.kept_pipeline(&kernel) {
            return Ok(pipeline);
        }
        #[cfg(target_arch = "wasm32")]
        return Ok(self.pipeline(&kernel));
        #[cfg(not(target_arch = "wasm32"))]
        {
            let pipeline = pollster::block_on(self.guarded(|| Ok(self.pipeline(&kernel))))?;
            self.keep_pipeline(kernel, pipeline.clone());
            Ok(pipeline)
        }
    }
}

impl BoundPlan {
    /// Encodes the dispatches. Nothing is submitted, waited for, created or allocated.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.encode_timed(encoder, None);
    }

    /// Those of its dispatches whose kernels' labels ([`Plan::kernels`]) are kept, to be timed apart from the
    /// others. They find what others have left, or have not: their results are not the plan's.
    pub fn only(&self, keeps: impl Fn(&str) -> bool) -> BoundPlan {
        let is_kept = |command: &&BoundCommand| match command {
            BoundCommand::Dispatch { label, .. } => keeps(label),
            BoundCommand::Copy { .. } => false,
        };
        let commands = self.commands.iter().filter(is_kept).cloned().collect();
        BoundPlan { commands, control: self.control.clone() }
    }

    /// [`BoundPlan::encode`] with timestamps before the first dispatch and after the last.
    pub fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamps: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        if let Some(control) = &self.control {
            encoder.clear_buffer(control, 0, Some(BLOCK_BYTES));
        }
        // dispatches that follow one another share a pass; copies come between passes
        let is_dispatch = |command: &BoundCommand| matches!(command, BoundCommand::Dispatch { .. });
        let runs = || self.commands.chunk_by(|a, b| is_dispatch(a) && is_dispatch(b));
        let is_pass = |run: &[BoundCommand]| run.first().is_some_and(is_dispatch);
        let first = runs().position(is_pass);
        let last = runs().enumerate().filter(|(_, run)| is_pass(run)).map(|(i, _)| i).last();
        if let (None, Some(timestamp_writes)) = (first, &timestamps) {
            // times are asked for, though there is nothing to do
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("wgloss"),
                timestamp_writes: Some(timestamp_writes.clone()),
            });
        }
        for (i, run) in runs().enumerate() {
            if let [BoundCommand::Copy { from, to, bytes }] = run {
                encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes);
                continue;
            }
            let timestamp_writes = timestamps.as_ref().and_then(|writes| {
                let of = |index: Option<u32>, at: Option<usize>| index.filter(|_| at == Some(i));
                let beginning = of(writes.beginning_of_pass_write_index, first);
                let end = of(writes.end_of_pass_write_index, last);
                (beginning.is_some() || end.is_some()).then_some(wgpu::ComputePassTimestampWrites {
                    query_set: writes.query_set,
                    beginning_of_pass_write_index: beginning,
                    end_of_pass_write_index: end,
                })
            });
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("wgloss"),
                timestamp_writes,
            });
            for command in run {
                if let BoundCommand::Dispatch { pipeline, group, workgroups: [x, y, z], .. } =
                    command
                {
                    pass.set_pipeline(pipeline);
                    pass.set_bind_group(0, group, &[]);
                    pass.dispatch_workgroups(*x, *y, *z);
                }
            }
        }
    }
}
