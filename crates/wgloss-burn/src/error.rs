//! What can go wrong before anything is computed, and what only the device can tell afterwards.

use burn::tensor::DType;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of the crate.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The device is unknown here: burn does not hand out the wgpu device of a runtime that is up
    /// already.
    #[error(
        "{device}: expected a device that is shared with wgloss: start with wgloss_burn::init(), or \
         give wgloss_burn::share() what Device::wgpu_options().init_with_setup() has returned"
    )]
    NotShared {
        /// The device, as burn shows it.
        device: String,
    },

    /// The kernels run on burn's wgpu backend alone.
    #[error("{device}: expected a wgpu device")]
    NotWgpu {
        /// The device, as burn shows it.
        device: String,
    },

    /// The tensors of a call are on several devices.
    #[error("{argument}: expected a tensor on the input's device, {expected}, got one on {actual}")]
    OtherDevice {
        /// The argument's name.
        argument: &'static str,
        /// The input's device.
        expected: String,
        /// The argument's device.
        actual: String,
    },

    /// Losses have no gradient with respect to targets or weights, so that one that was asked for would be
    /// missing.
    #[error(
        "{argument}: expected a tensor without a gradient, got one in a graph: take its inner()"
    )]
    Tracked {
        /// The argument's name.
        argument: &'static str,
    },

    /// A tensor is stored in a type that kernels do not read.
    #[error("{argument}: expected {expected}, got {actual:?}")]
    DType {
        /// The argument's name.
        argument: &'static str,
        /// The types that would do.
        expected: &'static str,
        /// The type that came.
        actual: DType,
    },

    /// A result has another number of dimensions than the tensor that it was to become.
    #[error("{result}: expected a tensor of {expected} dimensions, got shape {actual:?}")]
    Rank {
        /// The result's name.
        result: &'static str,
        /// The number that was asked for.
        expected: usize,
        /// The result's shape.
        actual: Vec<usize>,
    },

    /// wgloss refuses the call, or the device has told of a fault.
    #[error(transparent)]
    Wgloss(#[from] wgloss::Error),

    /// burn refuses: it could not start the device, or has lost it.
    #[error("burn: {0}")]
    Burn(String),
}
