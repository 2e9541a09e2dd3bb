// Element-wise losses and maps (whose output stands for the loss): teams take stretches of elements, four at a time.
//
// Reads `input`, `targets`, and where given `weight`, `pos_weight` and `upstream`. Writes `grad`,
// and in `losses` either each element's loss or one sum per team. Each element is written by one
// member of one team.
//
// Hooks, from the op's file, for four elements at once:
//     fn loss(e: Elements) -> vec4<f32>
//     fn gradient(e: Elements) -> vec4<f32>      its derivative with respect to the input
// They need not care for NaN in e.x and e.t: it is put into the result afterwards.
// From a file of checks/:
//     fn unacceptable(at: u32, last: u32, x: vec4<f32>, t: vec4<f32>) -> vec4<bool>
//                                                which of four elements the op does not take

struct Params {
    elements: u32,
    // how many of them one team takes: a multiple of 4 times its size
    per_team: u32,
    teams: u32,
    // how many dimensions the weights are laid over
    dims: u32,
    // what gradients are multiplied by: 1 / elements for the mean
    scale: f32,
    unused: u32,
    // the op's options
    settings: vec2<f32>,
    // innermost first: size, stride of weight, stride of pos_weight
    dim: array<vec4<u32>, 8>,
}

struct Elements {
    x: vec4<f32>,
    t: vec4<f32>,
    pos_weight: vec4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> losses: array<f32>;
@group(0) @binding(8) var<storage, read> pos_weight: array<f32>;

// Whether there are targets: maps have none.
override HAS_TARGET: bool = true;
// Whether the gradient at NaN is 0.
override ZERO_GRADIENT_AT_NAN: bool = false;
override WEIGHTED: bool = false;
override POS_WEIGHTED: bool = false;
// Whether losses are summed: one number per team instead of one per element.
override REDUCED: bool = false;

// The places of element i's weight and pos_weight.
fn weight_places(i: u32) -> vec2<u32> {
    var rest = i;
    var places = vec2(0u);
    for (var d = 0u; d < params.dims; d += 1u) {
        let dim = params.dim[d];
        places += (rest % dim.x) * dim.yz;
        rest /= dim.x;
    }
    return places;
}

struct Weights {
    weight: vec4<f32>,
    pos_weight: vec4<f32>,
}

fn load_weights(at: u32, last: u32) -> Weights {
    var weights = Weights(vec4(1.0), vec4(1.0));
    if WEIGHTED || POS_WEIGHTED {
        for (var i = 0u; i <= last; i += 1u) {
            let places = weight_places(at + i);
            if WEIGHTED {
                weights.weight[i] = weight[places.x];
            }
            if POS_WEIGHTED {
                weights.pos_weight[i] = pos_weight[places.y];
            }
        }
    }
    return weights;
}

struct Loaded {
    elements: Elements,
    weight: vec4<f32>,
    // NaN was read
    is_nan: vec4<bool>,
    // the op does not take these
    is_bad: vec4<bool>,
}

fn load_elements(at: u32, last: u32) -> Loaded {
    let x = load_input(at, 1u, last);
    var t = vec4(0.0);
    if HAS_TARGET {
        t = load_targets(at, 1u, last);
    }
    let weights = load_weights(at, last);
    return Loaded(
        Elements(x, t, weights.pos_weight),
        weights.weight,
        is_nan4(x) | is_nan4(t),
        unacceptable(at, last, x, t),
    );
}

fn weighted_loss(loaded: Loaded) -> vec4<f32> {
    let value = annihilating_product(loaded.weight, loss(loaded.elements));
    return select(value, vec4(nan()), loaded.is_nan | loaded.is_bad);
}

fn store_losses(at: u32, last: u32, value: vec4<f32>) {
    for (var i = 0u; i <= last; i += 1u) {
        losses[at + i] = value[i];
    }
}

fn store_weighted_gradient(at: u32, last: u32, loaded: Loaded) {
    let scale = upstream_of_elements(at, last) * params.scale;
    let value = annihilating_product(loaded.weight, gradient(loaded.elements));
    var scaled = annihilating_product(value, scale);
    if ZERO_GRADIENT_AT_NAN {
        scaled = select(scaled, vec4(0.0), loaded.is_nan);
    } else {
        scaled = select(scaled, vec4(nan()), loaded.is_nan);
    }
    store_grad(at, 1u, last, select(scaled, vec4(nan()), loaded.is_bad | is_nan4(scale)));
}

// One member's part of its team's stretch.
struct Stretch {
    first: u32,
    end: u32,
    step: u32,
}

fn stretch_of(team: Team) -> Stretch {
    let first = team.index * params.per_team;
    let end = min(first + params.per_team, params.elements);
    return Stretch(first + 4u * team.member, end, 4u * team.size);
}

// Sixteen additions apart, so that no accumulator takes many.
const BLOCK: u32 = 16u;

struct Accumulator {
    total: vec4<f32>,
    part: vec4<f32>,
    count: u32,
}

fn accumulate(accumulator: ptr<function, Accumulator>, value: vec4<f32>, last: u32) {
    (*accumulator).part += select(vec4(0.0), value, vec4(0u, 1u, 2u, 3u) <= vec4(last));
    (*accumulator).count += 1u;
    if (*accumulator).count == BLOCK {
        (*accumulator).total += (*accumulator).part;
        (*accumulator).part = vec4(0.0);
        (*accumulator).count = 0u;
    }
}

fn store_sum(team: Team, accumulator: Accumulator) {
    let sum = team_sum(team, vec4(add_up(accumulator.total + accumulator.part))).x;
    if team.member == 0u {
        losses[team.index] = sum;
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    let team = team_of(builtins);
    if team.index >= params.teams {
        return;
    }
    let stretch = stretch_of(team);
    var accumulator = Accumulator(vec4(0.0), vec4(0.0), 0u);
    for (var at = stretch.first; at < stretch.end; at += stretch.step) {
        let last = min(params.elements - 1u - at, 3u);
        let value = weighted_loss(load_elements(at, last));
        if REDUCED {
            accumulate(&accumulator, value, last);
        } else {
            store_losses(at, last, value);
        }
    }
    if REDUCED {
        store_sum(team, accumulator);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    let team = team_of(builtins);
    if team.index >= params.teams {
        return;
    }
    let stretch = stretch_of(team);
    for (var at = stretch.first; at < stretch.end; at += stretch.step) {
        let last = min(params.elements - 1u - at, 3u);
        store_weighted_gradient(at, last, load_elements(at, last));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    let team = team_of(builtins);
    if team.index >= params.teams {
        return;
    }
    let stretch = stretch_of(team);
    var accumulator = Accumulator(vec4(0.0), vec4(0.0), 0u);
    for (var at = stretch.first; at < stretch.end; at += stretch.step) {
        let last = min(params.elements - 1u - at, 3u);
        let loaded = load_elements(at, last);
        let value = weighted_loss(loaded);
        if REDUCED {
            accumulate(&accumulator, value, last);
        } else {
            store_losses(at, last, value);
        }
        store_weighted_gradient(at, last, loaded);
    }
    if REDUCED {
        store_sum(team, accumulator);
    }
}
