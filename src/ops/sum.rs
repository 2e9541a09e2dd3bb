//! Sums of any length, in a fixed order: losses, and the divisors of means.

use bytemuck::{Pod, Zeroable};

use crate::Result;
use crate::kernel::{self, File, Kernel};
use crate::program::{Binding, Port, Program, View, chunks, first_index};
use crate::tuning::ElementLaunch;

/// `Params` of `shaders/family/sum.wgsl`, after the offsets.
#[allow(missing_docs)] // the shader has them
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct SumParams {
    pub count: u32,
    pub per_team: u32,
    pub teams: u32,
    pub divisor: f32,
    pub classes: u32,
    pub ignore_index: i32,
    pub empty_mean: f32,
    pub first: u32,
    pub first_class: u32,
    pub total_classes: u32,
    pub unused: [u32; 2],
}

const VALUES: Port = Port::read(1);
const SUMS: Port = Port::write(6);

/// What is summed: one term for each element of a tensor.
pub struct Terms {
    /// The same for all terms of a kind, whose kernels are the same.
    pub label: &'static str,
    pub files: Vec<File>,
    pub port: Port,
    pub view: View,
    /// The ranges of it that hold terms: first element and count.
    pub ranges: Vec<[u64; 2]>,
    /// What else is bound.
    pub bindings: Vec<Binding>,
    pub constants: Vec<(&'static str, u32)>,
    /// `classes` and `ignore_index`, where the terms are class weights.
    pub params: SumParams,
}

impl Terms {
    /// Values in memory.
    pub fn values(view: View, ranges: Vec<[u64; 2]>) -> Self {
        Terms {
            label: "sum",
            files: vec![kernel::TERMS_VALUES],
            port: VALUES,
            view,
            ranges,
            bindings: vec![],
            constants: vec![],
            params: SumParams::default(),
        }
    }
}

/// Where a total goes.
#[derive(Debug, Clone)]
pub enum Total {
    /// It is the divisor in the control block.
    Divisor,
    /// It is written there.
    Sum(View),
    /// Divided by a number it is.
    SumOver(View, f32),
    /// Divided by the divisor in the control block it is; `empty_mean` where no row was kept.
    SumOverDivisor { sum: View, empty_mean: f32 },
}

impl Program {
    /// Adds the dispatches that sum terms: as many levels as it takes.
    pub(crate) fn sum(&mut self, by: ElementLaunch, mut terms: Terms, total: &Total) -> Result<()> {
        let most = self.limits.chunk_bytes() / terms.view.layout.dtype().size() as u64;
        loop {
            let mut parts: Vec<_> = terms
                .ranges
                .iter()
                .flat_map(|&[start, count]| {
                    chunks(count, most).map(move |[first, count]| [start + first, count])
                })
                .collect();
            if parts.is_empty() {
                // the sum of nothing is to be written too
                parts.push([0, 0]);
            }
            let teams_of = |count: u64| count.div_ceil(by.per_team.into()).max(1);
            let teams: u64 = parts.iter().map(|&[_, count]| teams_of(count)).sum();
            let is_last = teams == 1;
            let (divisor, empty_mean) = match total {
                Total::SumOver(_, divisor) if is_last => (Some(*divisor), f32::NAN),
                Total::SumOverDivisor { empty_mean, .. } if is_last => (Some(0.0), *empty_mean),
                _ => (None, f32::NAN),
            };
            let written = match total {
                _ if !is_last => Some(self.scratch_f32(teams)),
                Total::Divisor => None,
                Total::Sum(sum) | Total::SumOver(sum, _) | Total::SumOverDivisor { sum, .. } => {
                    Some(sum.clone())
                }
            };
            let mut done = 0;
            for [first, count] in parts {
                let teams = teams_of(count);
                let params = SumParams {
                    count: count as u32,
                    per_team: by.per_team,
                    teams: teams as u32,
                    divisor: divisor.unwrap_or(0.0),
                    empty_mean,
                    first: first_index(first),
                    ..terms.params
                };
                let constants = [
                    ("TO_CONTROL", written.is_none().into()),
                    ("DIVIDE", divisor.is_some().into()),
                ];
                let kernel = Kernel {
                    label: terms.label.into(),
                    files: [&[kernel::SUM, kernel::CONTROL], &terms.files[..]].concat(),
                    entry_point: "sum",
                    constants: [&constants[..], &terms.constants].concat(),
                    defines: vec![],
                    read_write: 0,
                };
                let mut bindings = terms.bindings.clone();
                bindings.push(Binding::part(terms.port, &terms.view, [first, count, 0]));
                bindings.push(match &written {
                    Some(sums) if is_last => Binding::all(SUMS, sums),
                    Some(sums) => Binding::part(SUMS, sums, [done, teams, 0]),
                    None => Binding::placeholder(SUMS),
                });
                bindings.push(Binding::control());
                self.dispatch_teams(by.launch, teams, kernel, &params, bindings)?;
                done += teams;
            }
            match written {
                Some(sums) if !is_last => terms = Terms::values(sums, vec![[0, teams]]),
                _ => return Ok(()),
            }
        }
    }
}
