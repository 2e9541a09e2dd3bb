//! What computes a rank's part: a GPU or the CPU.

use wgloss::{Args, Array, Cpu, Gpu, Op, Operand, Output, Pass, Result, Role, Tensor, wgpu};

/// What computes the passes of one rank, over arguments of one kind: [`Gpu`] over host arrays and device
/// tensors, [`Cpu`] over host arrays.
pub trait Engine<T: Operand> {
    /// Computes a pass.
    ///
    /// # Errors
    /// What the op refuses, and the device's.
    fn run(&self, op: &dyn Op, pass: Pass, args: &Args<T>) -> Result<Output<T::Output>>;

    /// A result, for the other ranks.
    ///
    /// # Errors
    /// The device's.
    fn read(&self, result: &T::Output) -> Result<Array<'static>>;

    /// An argument's elements.
    ///
    /// # Errors
    /// The device's.
    fn read_argument(&self, argument: &T) -> Result<Array<'static>>;

    /// An argument, of what other ranks told.
    ///
    /// # Errors
    /// The device's.
    fn argument(&self, array: Array<'static>) -> Result<T>;

    /// A result, of what other ranks told.
    ///
    /// # Errors
    /// The device's.
    fn result(&self, array: Array<'static>) -> Result<T::Output>;

    /// Writes elements over a result, where it lies.
    ///
    /// # Errors
    /// The device's, and a place that is not contiguous.
    fn overwrite(&self, result: &mut T::Output, array: Array<'static>) -> Result<()>;
}

impl<'a> Engine<Array<'a>> for Gpu {
    fn run(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'a>>,
    ) -> Result<Output<Array<'static>>> {
        self.block_on(Gpu::run(self, op, pass, args))
    }

    fn read(&self, result: &Array<'static>) -> Result<Array<'static>> {
        Ok(result.clone())
    }

    fn read_argument(&self, argument: &Array<'a>) -> Result<Array<'static>> {
        Ok(argument.clone().into_owned())
    }

    fn argument(&self, array: Array<'static>) -> Result<Array<'a>> {
        Ok(array)
    }

    fn result(&self, array: Array<'static>) -> Result<Array<'static>> {
        Ok(array)
    }

    fn overwrite(&self, result: &mut Array<'static>, array: Array<'static>) -> Result<()> {
        *result = array;
        Ok(())
    }
}

impl<'a> Engine<Array<'a>> for Cpu {
    fn run(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'a>>,
    ) -> Result<Output<Array<'static>>> {
        Cpu::run(self, op, pass, args)
    }

    fn read(&self, result: &Array<'static>) -> Result<Array<'static>> {
        Ok(result.clone())
    }

    fn read_argument(&self, argument: &Array<'a>) -> Result<Array<'static>> {
        Ok(argument.clone().into_owned())
    }

    fn argument(&self, array: Array<'static>) -> Result<Array<'a>> {
        Ok(array)
    }

    fn result(&self, array: Array<'static>) -> Result<Array<'static>> {
        Ok(array)
    }

    fn overwrite(&self, result: &mut Array<'static>, array: Array<'static>) -> Result<()> {
        *result = array;
        Ok(())
    }
}

impl Engine<Tensor> for Gpu {
    fn run(&self, op: &dyn Op, pass: Pass, args: &Args<Tensor>) -> Result<Output<Tensor>> {
        self.block_on(Gpu::run(self, op, pass, args))
    }

    fn read(&self, result: &Tensor) -> Result<Array<'static>> {
        self.block_on(Gpu::read(self, result))
    }

    fn read_argument(&self, argument: &Tensor) -> Result<Array<'static>> {
        self.block_on(Gpu::read(self, argument))
    }

    fn argument(&self, array: Array<'static>) -> Result<Tensor> {
        self.block_on(self.upload(&array))
    }

    fn result(&self, array: Array<'static>) -> Result<Tensor> {
        self.block_on(self.upload(&array))
    }

    fn overwrite(&self, result: &mut Tensor, array: Array<'static>) -> Result<()> {
        let layout = result.layout();
        let bytes = layout.bytes();
        let start = layout.offset() as u64 * layout.dtype().size() as u64;
        if !layout.is_contiguous() || !(start | bytes).is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT) {
            return Err(wgloss::Error::Value {
                argument: Role::Grad.name(),
                expected: "a contiguous place of whole words for a sum over ranks".into(),
                actual: layout.to_string(),
            });
        }
        self.queue().write_buffer(result.buffer(), start, array.data().bytes());
        Ok(())
    }
}
