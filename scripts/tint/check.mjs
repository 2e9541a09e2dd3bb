// Compiles every kernel with Tint, Chrome's WGSL compiler, in Dawn (npm `webgpu`), on Dawn's null
// backend: whatever a browser checks of a text and of a pipeline, without a browser or a GPU.
//
//     node check.mjs kernels.jsonl
//
// A line of the file is a text and the pipelines that are made of it. See scripts/test-tint.sh for the
// exit status.
import { createReadStream } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

function notAvailable(why) {
    console.error(`test-tint: ${why}`);
    console.log('tint  not available');
    process.exit(3);
}

const { create, version } = await import('webgpu').then(
    ({ create }) => ({ create, version: createRequire(import.meta.url)('webgpu/package.json').version }),
    (error) => notAvailable(`webgpu does not load: ${error.message}`));
// Dawn's instance ends with the object, whatever is still in use
globalThis.gpu = create(['backend=null']);
// the device's limits are WebGPU's defaults
const adapter = await gpu.requestAdapter();
if (!adapter?.features.has('subgroups')) notAvailable('no adapter with subgroups');
const device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });
device.lost.then(({ message }) => {
    console.error(`test-tint: the device is lost: ${message}`);
    process.exit(1);
});

// What an action has to say against itself: nothing where it is accepted.
async function refusal(action) {
    const scopes = ['validation', 'internal', 'out-of-memory'];
    scopes.forEach((scope) => device.pushErrorScope(scope));
    const messages = await action();
    for (const _ of scopes) {
        const error = await device.popErrorScope();
        if (error) messages.push(error.message);
    }
    return messages.join('\n');
}

let warnings = 0;

async function compile(code) {
    let module;
    const refused = await refusal(async () => {
        module = device.createShaderModule({ code });
        const { messages } = await module.getCompilationInfo();
        warnings += messages.filter(({ type }) => type === 'warning').length;
        return messages.filter(({ type }) => type === 'error').map(({ message, lineNum }) =>
            `${message}: ${code.split('\n')[lineNum - 1]?.trim()}`);
    });
    return { module, refused };
}

function link(module, { entry_point: entryPoint, constants }) {
    return refusal(async () => {
        device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint, constants } });
        return [];
    });
}

// Texts and pipelines that must be refused, or this test could not fail; and their like that must not.
const body = (text) => `
    override SIZE: u32 = 64u;
    @group(0) @binding(0) var<storage, read_write> data: array<u32>;
    @compute @workgroup_size(SIZE)
    fn main(@builtin(local_invocation_index) index: u32) { ${text} }`;
const shuffle = body('if index < 7u { data[index] = subgroupShuffleXor(index, 1u); }');
const own = [
    ['a text', true, body('data[index] = index;')],
    ['a text of another language', false, body('data[index] = a tree;')],
    ['a barrier for all', true, body('data[index] = 1u; workgroupBarrier();')],
    ['a barrier for some', false, body('if index < 7u { workgroupBarrier(); } data[index] = 1u;')],
    ['a barrier if memory says so', false, body('if data[0] == 7u { workgroupBarrier(); }')],
    ['a shuffle that is not enabled', false, shuffle],
    ['a shuffle for some', false, `enable subgroups;${shuffle}`],
    ['a shuffle for some, unproven', true,
        `enable subgroups; diagnostic(off, subgroup_uniformity);${shuffle}`],
    ['a pipeline', true, body('data[index] = 1u;'), { SIZE: 256 }],
    ['a constant that is not declared', false, body('data[index] = 1u;'), { NONE: 1 }],
    ['a workgroup beyond the limits', false, body('data[index] = 1u;'), { SIZE: 257 }],
];
for (const [what, isAccepted, text, constants] of own) {
    let { module, refused } = await compile(text);
    if (!refused && constants) refused = await link(module, { entry_point: 'main', constants });
    if (!refused !== isAccepted) {
        console.error(`test-tint: ${what} is ${refused ? `refused: ${refused}` : 'accepted'}`);
        process.exit(1);
    }
}

const counts = new Map();
const refusals = [];
warnings = 0;
for await (const line of createInterface({ input: createReadStream(process.argv[2]) })) {
    const { text, pipelines } = JSON.parse(line);
    const [{ label }] = pipelines;
    const clusters = text.startsWith('enable subgroups;') && label.endsWith('.workgroup');
    const [team] = label.match(/invocation|subgroup|workgroup/) ?? ['no'];
    const kind = `by ${team}${clusters ? ' of subgroups' : ''}`;
    if (!counts.has(kind)) counts.set(kind, { texts: 0, accepted: 0, pipelines: 0, linked: 0 });
    const count = counts.get(kind);
    const { module, refused } = await compile(text);
    count.texts += 1;
    count.pipelines += pipelines.length;
    if (refused) {
        refusals.push(`${label}: ${refused}`);
        continue;
    }
    count.accepted += 1;
    for (const pipeline of pipelines) {
        const refused = await link(module, pipeline);
        if (refused) refusals.push(`${pipeline.label}: ${refused}`);
        else count.linked += 1;
    }
}

const print = (...cells) => console.log(cells.map((cell) => cell.padEnd(28)).join('').trimEnd());
const total = { texts: 0, accepted: 0, pipelines: 0, linked: 0 };
print('kernels', 'texts accepted', 'pipelines accepted');
for (const [kind, count] of [...[...counts].sort(), ['all', total]]) {
    print(kind, `${count.accepted} of ${count.texts}`, `${count.linked} of ${count.pipelines}`);
    if (count !== total) for (const key in total) total[key] += count[key];
}
console.log(`Tint of webgpu ${version}; ${own.length} texts and pipelines of the test's own as expected; ${warnings} warnings`);
refusals.slice(0, 20).forEach((refusal) => console.error(refusal));
if (refusals.length > 0) console.error(`test-tint: ${refusals.length} refused`);
if (total.texts === 0) console.error('test-tint: there are no kernels');
// Dawn keeps the process alive
process.exit(refusals.length > 0 || total.texts === 0 ? 1 : 0);
