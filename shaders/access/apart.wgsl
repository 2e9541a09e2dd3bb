// For inputs in memory of their own.

// [rows, classes] or [elements], in words of storage/
@group(0) @binding(1) var<storage, read> input: array<Word>;

fn input_word(i: u32) -> Word {
    return input[i];
}
