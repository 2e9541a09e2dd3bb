//! Zeros between the rows of a gradient.

use bytemuck::{Pod, Zeroable};

use crate::Result;
use crate::kernel::{self, Kernel};
use crate::limits::Split;
use crate::program::{Binding, Port, Program, View};

/// `Params` of `shaders/family/padding.wgsl`, after the offsets.
#[allow(missing_docs)] // the shader has them
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct PaddingParams {
    pub rows: u32,
    pub padding: u32,
    pub unused: [u32; 2],
}

/// The invocations of a workgroup.
const WORKGROUP: u32 = 64;

impl Program {
    /// Adds the dispatches that write zeros behind each row of a tensor, the last one's too.
    pub(crate) fn zero_padding(&mut self, view: &View) -> Result<()> {
        let layout = &view.layout;
        let (rows, stride) = (layout.shape().first().copied().unwrap_or(1), layout.row_stride());
        let inner = layout.elements().checked_div(rows).unwrap_or(0);
        let padding = (stride - inner) as u64;
        if padding == 0 || rows == 0 {
            return Ok(());
        }
        let size = layout.dtype().size() as u64;
        let tensor = ("one row of grad", [stride as u64, padding].map(|n| n * size));
        let split = Split::by_rows(&self.limits, [rows as u64, padding], [tensor])?;
        for chunk in split.chunks() {
            let [first, span, stride] = chunk.range(stride as u64);
            let range = [first + inner as u64, span, stride];
            let params = PaddingParams {
                rows: chunk.rows as u32,
                padding: padding as u32,
                ..PaddingParams::default()
            };
            let kernel = Kernel {
                label: format!("zero_padding.{}", layout.dtype()),
                files: [
                    &[kernel::PADDING, kernel::MATH, kernel::OFFSETS][..],
                    &kernel::storage(layout.dtype(), false, kernel::Access::Apart),
                ]
                .concat(),
                entry_point: "zero_padding",
                constants: vec![],
                defines: vec![],
                read_write: 0,
            };
            let invocations = chunk.rows * padding.div_ceil(4);
            let workgroups = self.limits.workgroups(invocations, WORKGROUP)?;
            let bindings = vec![Binding::part(Port::write(5), view, range)];
            self.dispatch(kernel, &params, bindings, workgroups)?;
        }
        Ok(())
    }
}
