// Leaves by process.exit(7) while the queue is working and somebody waits. Argument: milliseconds until then.
import { makeBlock, open, pass } from './compute.mjs'

const device = open(2)
const block = makeBlock(device)
for (let i = 0; i < 200; i++) pass(block).dispose()
void device.idle()
setTimeout(() => process.exit(7), Number(process.argv[2]))
