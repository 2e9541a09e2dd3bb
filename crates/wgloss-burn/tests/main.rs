//! wgloss on burn's tensors, on whatever adapter burn takes: in one program, since each links all of burn.

mod common;

mod burns;
mod devices;
mod graphs;
mod layouts;
mod linear;
mod reference;
mod training;
