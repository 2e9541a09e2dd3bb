// Where the tensors of a dispatch lie in their bindings, in elements. The family's Params begin with
//     places: array<vec4<u32>, 9>
// one for each binding: x is where the first element to work on lies, y how far one line lies from
// the next. A line is an index of the first dimension, or all elements where nothing lies between
// them. Bindings can start only at aligned places of a buffer; tensors start anywhere.

const INPUT: u32 = 1u;
const TARGETS: u32 = 2u;
const WEIGHT: u32 = 3u;
const UPSTREAM: u32 = 4u;
const GRAD: u32 = 5u;
const RESULTS: u32 = 6u;
const STATE: u32 = 8u;
const POS_WEIGHT: u32 = 8u;

// Four elements of a line, of which `last` in 0..=3 is the last that exists.
struct Quad {
    line: u32,
    column: u32,
    last: u32,
    // the first of them among all elements of this dispatch
    index: u32,
}

// Read at the start of every kernel: software drivers read uniforms lane by lane, over and over where
// that is done in a loop.
var<private> places: array<vec2<u32>, 9>;

fn read_places() {
    places[INPUT] = params.places[INPUT].xy;
    places[TARGETS] = params.places[TARGETS].xy;
    places[WEIGHT] = params.places[WEIGHT].xy;
    places[UPSTREAM] = params.places[UPSTREAM].xy;
    places[GRAD] = params.places[GRAD].xy;
    places[RESULTS] = params.places[RESULTS].xy;
    places[STATE] = params.places[STATE].xy;
}

fn place(binding: u32, line: u32, column: u32) -> u32 {
    let p = places[binding];
    return p.x + line * p.y + column;
}
