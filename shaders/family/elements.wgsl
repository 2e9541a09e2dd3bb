// Element-wise losses and maps (whose output stands for the loss): teams take stretches of elements, four at a time.
//
// Reads the input, `targets`, and where given `weight`, `pos_weight` and `upstream`. Writes `grad`,
// and through a file of results/ either each element's loss or output, or one sum per team. Each
// element is written by one member of one team.
//
// Hooks, from the op's file, for four elements at once:
//     fn loss(e: Elements) -> vec4<f32>
//     fn gradient(e: Elements) -> vec4<f32>      its derivative with respect to the input
// They need not care for NaN in e.x and e.t: it is put into the result afterwards.
// From a file of checks/:
//     fn unacceptable(quad: Quad, x: vec4<f32>, t: vec4<f32>) -> vec4<bool>
//                                                which of four elements the op does not take

struct Params {
    places: array<vec4<u32>, 9>,
    // how often four elements of a line are taken together
    quads: u32,
    // how many of these quads one team takes
    per_team: u32,
    teams: u32,
    // the elements of a line
    line: u32,
    // how many dimensions weights are broadcast over
    dims: u32,
    // what gradients are multiplied by: 1 / elements for the mean
    scale: f32,
    // 1 where each element has a weight of its own, and a pos_weight; else 0
    own: vec2<u32>,
    // the op's options, as its settings() has them
    settings: array<vec4<f32>, 2>,
    // the first element of this dispatch, among all
    first: u32,
    // innermost first: size, stride of weight, stride of pos_weight, index of the first element
    dim: array<vec4<u32>, 8>,
}

struct Elements {
    x: vec4<f32>,
    t: vec4<f32>,
    pos_weight: vec4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(8) var<storage, read> pos_weight: array<f32>;

// Whether there are targets: maps have none.
override HAS_TARGET: bool = true;
// Whether it is a loss of x - t, which is NaN where both are the same infinity.
override OF_DIFFERENCE: bool = false;
// Whether the gradient at NaN is 0.
override ZERO_GRADIENT_AT_NAN: bool = false;
override WEIGHTED: bool = false;
override POS_WEIGHTED: bool = false;
// Whether there are several lines.
override LINES: bool = false;
// Whether losses are summed: one number per team instead of one per element.
override REDUCED: bool = false;

fn quad_at(q: u32) -> Quad {
    var line = 0u;
    var column = 4u * q;
    if LINES {
        let per_line = (params.line + 3u) / 4u;
        line = q / per_line;
        column = 4u * (q - line * per_line);
    }
    let last = select(min(params.line - 1u - column, 3u), 3u, WHOLE_FOURS);
    return Quad(line, column, last, line * params.line + column);
}

// The places of an element's weight and pos_weight, for the i-th of this dispatch.
fn weight_places(i: u32) -> vec2<u32> {
    var rest = i;
    var at = vec2(place(WEIGHT, 0u, 0u), place(POS_WEIGHT, 0u, 0u)) + i * params.own;
    for (var d = 0u; d < params.dims; d += 1u) {
        let dim = params.dim[d];
        let index = rest % dim.x + dim.w;
        let carry = select(0u, 1u, index >= dim.x);
        at += (index - carry * dim.x) * dim.yz;
        rest = rest / dim.x + carry;
    }
    return at;
}

struct Weights {
    weight: vec4<f32>,
    pos_weight: vec4<f32>,
}

fn load_weights(quad: Quad) -> Weights {
    var weights = Weights(vec4(1.0), vec4(1.0));
    if WEIGHTED || POS_WEIGHTED {
        for (var i = 0u; i <= quad.last; i += 1u) {
            let at = weight_places(quad.index + i);
            if WEIGHTED {
                weights.weight[i] = weight[at.x];
            }
            if POS_WEIGHTED {
                weights.pos_weight[i] = pos_weight[at.y];
            }
        }
    }
    return weights;
}

struct Loaded {
    elements: Elements,
    weight: vec4<f32>,
    // NaN was read, or is the difference that the loss is of
    is_nan: vec4<bool>,
    // the op does not take these
    is_bad: vec4<bool>,
}

fn load_elements(quad: Quad) -> Loaded {
    let x = load_input(place(INPUT, quad.line, quad.column), 1u, quad.last);
    var t = vec4(0.0);
    if HAS_TARGET {
        t = load_targets(place(TARGETS, quad.line, quad.column), 1u, quad.last);
    }
    let weights = load_weights(quad);
    var is_nan = is_nan4(x) | is_nan4(t);
    if OF_DIFFERENCE {
        is_nan |= is_same_infinity4(x, t);
    }
    return Loaded(
        Elements(x, t, weights.pos_weight),
        weights.weight,
        is_nan,
        unacceptable(quad, x, t),
    );
}

fn weighted_loss(loaded: Loaded) -> vec4<f32> {
    let value = annihilating_product(loaded.weight, loss(loaded.elements));
    return select(value, vec4(nan()), loaded.is_nan | loaded.is_bad);
}

fn store_weighted_gradient(quad: Quad, loaded: Loaded, divided: f32) {
    let scale = upstream_of_elements(quad) * divided;
    let value = annihilating_product(loaded.weight, gradient(loaded.elements));
    var scaled = annihilating_product(value, scale);
    if ZERO_GRADIENT_AT_NAN {
        scaled = select(scaled, vec4(0.0), loaded.is_nan);
    } else {
        scaled = select(scaled, vec4(nan()), loaded.is_nan);
    }
    let stored = select(scaled, vec4(nan()), loaded.is_bad | is_nan4(scale));
    store_grad(place(GRAD, quad.line, quad.column), 1u, quad.last, stored);
}

// What a team works on: quads from the first one on. In each block a member takes HELD of them, RUN
// side by side.
struct Stretch {
    first: u32,
    end: u32,
    block: u32,
}

fn stretch_of(team: Team) -> Stretch {
    let first = team.index * params.per_team;
    return Stretch(first, min(first + params.per_team, params.quads), HELD * team.size);
}

// The k-th quad that a member takes of a block.
fn quad_of_block(team: Team, block: u32, k: u32) -> u32 {
    return block + (k / RUN * team.size + team.member) * RUN + k % RUN;
}

// Stores losses, or returns them to be summed.
fn take_loss(quad: Quad, value: vec4<f32>) -> vec4<f32> {
    if REDUCED {
        return select(vec4(0.0), value, vec4(0u, 1u, 2u, 3u) <= vec4(quad.last));
    }
    store_results(place(RESULTS, quad.line, quad.column), quad.last, value);
    return vec4(0.0);
}

fn store_team_sum(team: Team, total: vec4<f32>) {
    let sum = team_sum(team, vec4(add_up(total))).x;
    if team.member == 0u {
        store_sum(place(RESULTS, 0u, team.index), sum);
    }
}

// A loop for each pass: whatever a shared one reached, every pass would have to bind.
@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    if team.index >= params.teams {
        return;
    }
    let stretch = stretch_of(team);
    // a block's sum is added to the total: no accumulator takes many additions
    var total = vec4(0.0);
    for (var block = stretch.first; block < stretch.end; block += stretch.block) {
        var part = vec4(0.0);
        for (var k = 0u; k < HELD; k += 1u) {
            let q = quad_of_block(team, block, k);
            if q < stretch.end {
                let quad = quad_at(q);
                part += take_loss(quad, weighted_loss(load_elements(quad)));
            }
        }
        total += part;
    }
    if REDUCED {
        store_team_sum(team, total);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    if team.index >= params.teams {
        return;
    }
    let stretch = stretch_of(team);
    let scale = params.scale;
    for (var block = stretch.first; block < stretch.end; block += stretch.block) {
        for (var k = 0u; k < HELD; k += 1u) {
            let q = quad_of_block(team, block, k);
            if q < stretch.end {
                let quad = quad_at(q);
                store_weighted_gradient(quad, load_elements(quad), scale);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    if team.index >= params.teams {
        return;
    }
    let stretch = stretch_of(team);
    let scale = params.scale;
    // a block's sum is added to the total: no accumulator takes many additions
    var total = vec4(0.0);
    for (var block = stretch.first; block < stretch.end; block += stretch.block) {
        var part = vec4(0.0);
        for (var k = 0u; k < HELD; k += 1u) {
            let q = quad_of_block(team, block, k);
            if q < stretch.end {
                let quad = quad_at(q);
                let loaded = load_elements(quad);
                part += take_loss(quad, weighted_loss(loaded));
                store_weighted_gradient(quad, loaded, scale);
            }
        }
        total += part;
    }
    if REDUCED {
        store_team_sum(team, total);
    }
}
