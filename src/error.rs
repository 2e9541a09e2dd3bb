//! What can go wrong, with the argument named, what was expected and what came.

use crate::{DType, Role};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of the crate. A message names the argument, what was expected and what came.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An argument has a shape that does not fit the others.
    #[error("{argument}: expected shape {expected}, got {actual:?}")]
    Shape {
        /// The argument's name.
        argument: &'static str,
        /// The shape that would fit, for example `[N, 10]`.
        expected: String,
        /// The shape that came.
        actual: Vec<usize>,
    },

    /// A slice has more or fewer elements than its shape.
    #[error("{argument}: expected {expected} elements for shape {shape:?}, got {actual}")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// The shape given.
        shape: Vec<usize>,
        /// The number of elements of that shape.
        expected: usize,
        /// The number of elements that came.
        actual: usize,
    },

    /// An argument is stored in a type that the op does not take there.
    #[error("{argument}: expected storage type {expected}, got {actual}")]
    DType {
        /// The argument's name.
        argument: &'static str,
        /// The types that would do.
        expected: String,
        /// The type that came.
        actual: DType,
    },

    /// An option or a value of an argument is outside its range.
    #[error("{argument}: expected {expected}, got {actual}")]
    Value {
        /// The argument's or option's name.
        argument: &'static str,
        /// The range that would do.
        expected: String,
        /// The value that came, with its position where it has one.
        actual: String,
    },

    /// A class index outside `0..classes` that is not `ignore_index`.
    #[error("target: expected a class in 0..{classes} at row {row}, got {class}")]
    Class {
        /// The first such row, counted over `[N, d1, ...]`.
        row: u64,
        /// The class found there.
        class: i64,
        /// The number of classes, C.
        classes: u64,
    },

    /// An argument that this op and pass need was not given.
    #[error("{argument}: expected for {op}, got none")]
    Missing {
        /// The argument's name.
        argument: &'static str,
        /// The op and pass.
        op: String,
    },

    /// An argument was given that this op or pass has no use for.
    #[error("{argument}: expected none for {op}, got one")]
    Unexpected {
        /// The argument's name.
        argument: &'static str,
        /// The op and pass.
        op: String,
    },

    /// A buffer that the device cannot hold or bind.
    #[error("{argument}: expected at most {limit} bytes ({limit_name} of {device}), got {bytes}")]
    TooLarge {
        /// The argument's name.
        argument: &'static str,
        /// The bytes it needs.
        bytes: u64,
        /// The most the device takes.
        limit: u64,
        /// Which of the device's limits that is.
        limit_name: &'static str,
        /// The device's name.
        device: String,
    },

    /// A batch of a [`Stream`](crate::Stream) failed.
    #[error("batch {index}: {error}")]
    Batch {
        /// Which one, counted from 0.
        index: usize,
        /// What was wrong with it.
        error: Box<Error>,
    },

    /// A result that the pass does not have was asked for.
    #[error("{result}: expected a pass that computes it, got none")]
    NotComputed {
        /// The result's name.
        result: &'static str,
    },

    /// An error that the caller's own use of the device has left outside of any error scope: reported
    /// by the next call, which does nothing else.
    #[error("device: an earlier use outside of this crate: {0}")]
    Uncaptured(Box<Error>),

    /// No adapter of the kind asked for was found.
    #[error("device: expected {expected}, found {found}")]
    NoAdapter {
        /// What was asked for.
        expected: String,
        /// The adapters that were found, or `none`.
        found: String,
    },

    /// The device has no memory left for this call.
    #[error("device: out of memory: {0}")]
    OutOfMemory(String),

    /// The device is gone: it was destroyed, unplugged or reset.
    #[error("device: lost: {0}")]
    DeviceLost(String),

    /// wgpu refused a call. With the caller's own buffers, the message names what is wrong with
    /// them; otherwise it is a defect of this crate.
    #[error("device: refused: {0}")]
    Validation(String),

    /// The driver failed in a way that WebGPU does not foresee.
    #[error("device: internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The name of the argument, result or option that is wrong; `device` for errors of the device's.
    pub fn argument(&self) -> Option<&'static str> {
        match self {
            Error::Shape { argument, .. }
            | Error::Length { argument, .. }
            | Error::DType { argument, .. }
            | Error::Value { argument, .. }
            | Error::Missing { argument, .. }
            | Error::Unexpected { argument, .. }
            | Error::TooLarge { argument, .. } => Some(argument),
            Error::NotComputed { result } => Some(result),
            Error::Class { .. } => Some(Role::Target.name()),
            Error::Batch { error, .. } => error.argument(),
            Error::Uncaptured(_)
            | Error::NoAdapter { .. }
            | Error::OutOfMemory(_)
            | Error::DeviceLost(_)
            | Error::Validation(_)
            | Error::Internal(_) => Some("device"),
        }
    }

    /// The message without the name of the [argument](Self::argument): for tools that know it by
    /// another name.
    pub fn reason(&self) -> String {
        let text = self.to_string();
        let prefix = self.argument().map(|argument| format!("{argument}: ")).unwrap_or_default();
        text.strip_prefix(&prefix).map(str::to_owned).unwrap_or(text)
    }
}
