// The input is in memory of its own.

@group(0) @binding(1) var<storage, read> input: array<Word>;

fn input_word(i: u32) -> Word {
    return input[i];
}
