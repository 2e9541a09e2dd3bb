// Compiles kernels with Tint, Chrome's WGSL compiler, in Dawn (npm `webgpu`) on Dawn's null backend:
// all that a browser checks of a text and of a pipeline, without a browser or a GPU.
//
//     node check.mjs kernels.jsonl
//
// A line of the file is a text and the pipelines that are made of it (crates/wgloss-testing/src/
// kernels.rs). Exit status: 0 if all are accepted, 1 if not, 3 if Tint cannot be had.
import { fork } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const [path, part, parts] = process.argv.slice(2);

function notAvailable(why) {
    console.error(`test-tint: ${why}`);
    process.exit(3);
}

function fail(why) {
    console.error(`test-tint: ${why}`);
    process.exit(1);
}

let device;

async function open() {
    try {
        const { create } = await import('webgpu');
        // Dawn's instance ends with this object, whatever is still in use.
        globalThis.gpu = create(['backend=null']);
    } catch (error) {
        notAvailable(`webgpu does not load: ${error.message}`);
    }
    const adapter = await gpu.requestAdapter();
    if (!adapter?.features.has('subgroups')) notAvailable('no adapter with subgroups');
    // its limits are WebGPU's defaults
    device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });
    device.lost.then(({ message }) => fail(`the device is lost: ${message}`));
}

// What Dawn has against an action, or else what the action returns: nothing where it is accepted.
async function refusal(action) {
    const scopes = ['validation', 'internal', 'out-of-memory'];
    for (const scope of scopes) device.pushErrorScope(scope);
    const messages = await action();
    const errors = [];
    for (const _ of scopes) errors.push(await device.popErrorScope());
    return errors.find((error) => error)?.message ?? messages.join('\n');
}

let warnings = 0;

async function compile(code) {
    let module;
    const refused = await refusal(async () => {
        module = device.createShaderModule({ code });
        const { messages } = await module.getCompilationInfo();
        warnings += messages.filter(({ type }) => type === 'warning').length;
        return messages.filter(({ type }) => type === 'error').map(({ message }) => message);
    });
    return { module, refused };
}

function link(module, { entry_point: entryPoint, constants }) {
    return refusal(async () => {
        device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint, constants } });
        return [];
    });
}

// Texts and pipelines that must be refused, since a test that cannot fail says nothing, and their like
// that must not.
const main = (text) => `
    override SIZE: u32 = 64u;
    @group(0) @binding(0) var<storage, read_write> data: array<u32>;
    @compute @workgroup_size(SIZE)
    fn main(@builtin(local_invocation_index) index: u32) { ${text} }`;
const shuffle = main('if index < 7u { data[index] = subgroupShuffleXor(index, 1u); }');
const OWN = [
    ['a text', true, main('data[index] = index;')],
    ['a text that is not WGSL', false, main('data[index] = a tree;')],
    ['a barrier for all', true, main('data[index] = 1u; workgroupBarrier();')],
    ['a barrier for some', false, main('if index < 7u { workgroupBarrier(); } data[index] = 1u;')],
    ['a barrier where memory says so', false, main('if data[0] == 7u { workgroupBarrier(); }')],
    ['a shuffle that is not enabled', false, shuffle],
    ['a shuffle for some', false, `enable subgroups;${shuffle}`],
    ['a shuffle for some, without proof', true,
        `enable subgroups; diagnostic(off, subgroup_uniformity);${shuffle}`],
    ['a pipeline', true, main('data[index] = 1u;'), { SIZE: 256 }],
    ['a pipeline with a constant too many', false, main('data[index] = 1u;'), { NONE: 1 }],
    ['a workgroup beyond the limits', false, main('data[index] = 1u;'), { SIZE: 257 }],
];

async function checkItself() {
    await open();
    for (const [what, isAccepted, text, constants] of OWN) {
        let { module, refused } = await compile(text);
        if (!refused && constants) refused = await link(module, { entry_point: 'main', constants });
        if (!refused !== isAccepted) fail(`${what} is ${refused ? `refused: ${refused}` : 'accepted'}`);
    }
}

// Counts of texts, accepted texts, pipelines and accepted pipelines.
const add = (counts, more) => counts.map((count, i) => count + more[i]);

// Every `parts`-th text: counts by team, what was refused, and warnings.
async function checkPart() {
    await open();
    const counts = {};
    const refusals = [];
    let index = 0;
    for await (const line of createInterface({ input: createReadStream(path) })) {
        if (index++ % parts !== Number(part)) continue;
        const { text, pipelines } = JSON.parse(line);
        const { module, refused } = await compile(text);
        if (refused) refusals.push(`${pipelines[0].label}: ${refused}`);
        let linked = 0;
        for (const pipeline of refused ? [] : pipelines) {
            const refused = await link(module, pipeline);
            if (refused) refusals.push(`${pipeline.label}: ${refused}`);
            else linked += 1;
        }
        const [team] = pipelines[0].label.match(/invocation|subgroup|workgroup/) ?? ['no team'];
        const clusters = team === 'workgroup' && text.includes('subgroupShuffle');
        const kind = clusters ? 'workgroup of subgroups' : team;
        const count = [1, refused ? 0 : 1, pipelines.length, linked];
        counts[kind] = add(counts[kind] ?? [0, 0, 0, 0], count);
    }
    // Dawn keeps a process alive
    process.send({ counts, refusals, warnings }, () => process.exit(0));
}

// All of them, in as many processes as there are cores.
async function checkAll() {
    await checkItself();
    const processes = availableParallelism();
    const of = (part) => new Promise((resolve) => {
        const child = fork(fileURLToPath(import.meta.url), [path, part, processes]);
        child.on('message', resolve);
        child.on('exit', (code, signal) => {
            if (code !== 0) fail(`a part of the kernels ended with ${signal ?? `status ${code}`}`);
        });
    });
    const results = await Promise.all([...Array(processes).keys()].map(of));
    const counts = {};
    for (const [kind, count] of results.flatMap((result) => Object.entries(result.counts))) {
        counts[kind] = add(counts[kind] ?? [0, 0, 0, 0], count);
    }
    const total = Object.values(counts).reduce(add, [0, 0, 0, 0]);
    const print = (...cells) => console.log(cells.map((cell) => cell.padEnd(25)).join('').trimEnd());
    print('team', 'texts accepted', 'pipelines accepted');
    for (const [kind, [texts, accepted, pipelines, linked]] of [
        ...Object.entries(counts).sort(), ['all', total],
    ]) {
        print(kind, `${accepted} of ${texts}`, `${linked} of ${pipelines}`);
    }
    const { version } = createRequire(import.meta.url)('webgpu/package.json');
    const warned = results.reduce((sum, result) => sum + result.warnings, 0);
    console.log(`Tint of webgpu ${version}; ${warned} warnings; ${OWN.length} checks of its own`);
    const refusals = results.flatMap((result) => result.refusals);
    for (const refusal of refusals.slice(0, 20)) console.error(refusal);
    if (refusals.length > 0) fail(`${refusals.length} refused`);
    if (total[0] === 0) fail('there are no kernels');
    process.exit(0);
}

await (part === undefined ? checkAll() : checkPart());
