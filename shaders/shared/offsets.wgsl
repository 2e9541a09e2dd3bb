// Where the tensors of a dispatch lie in their bindings, in elements. A binding can start only at
// an aligned byte of a buffer, but a tensor starts anywhere, and its rows may be padded. So the
// Params of every family begin with
//     offsets: array<vec4<u32>, 9>
// which has for each binding: x, the index of the first element to work on; y, the distance from
// one outer row to the next. An outer row is an index of the tensor's first dimension; a tensor
// without padding is one outer row.

const INPUT: u32 = 1u;
const TARGETS: u32 = 2u;
const WEIGHT: u32 = 3u;
const UPSTREAM: u32 = 4u;
const GRAD: u32 = 5u;
const RESULTS: u32 = 6u;
// One family has a state, another a pos_weight; none has both.
const STATE: u32 = 8u;
const POS_WEIGHT: u32 = 8u;

// Four neighbouring elements of an outer row: a vec4 of a tensor.
struct Vec4Index {
    outer_row: u32,
    // the first of them within the outer row
    column: u32,
    // which of them, in 0..=3, is the last that exists
    last: u32,
    // the first of them among all elements of this dispatch
    index: u32,
}

// A copy in private memory, because software drivers read uniforms lane by lane, again in each
// iteration of a loop. Every entry point calls read_offsets first.
var<private> offsets: array<vec2<u32>, 9>;

fn read_offsets() {
    offsets[INPUT] = params.offsets[INPUT].xy;
    offsets[TARGETS] = params.offsets[TARGETS].xy;
    offsets[WEIGHT] = params.offsets[WEIGHT].xy;
    offsets[UPSTREAM] = params.offsets[UPSTREAM].xy;
    offsets[GRAD] = params.offsets[GRAD].xy;
    offsets[RESULTS] = params.offsets[RESULTS].xy;
    offsets[STATE] = params.offsets[STATE].xy;
}

// The index in its binding of an element, given its outer row and its column within that.
fn element_index(binding: u32, outer_row: u32, column: u32) -> u32 {
    let offset = offsets[binding];
    return offset.x + outer_row * offset.y + column;
}
