// What the module for GPUs finds on the machine as the environment describes it.
import { cudaBackend, loadAddon } from '../../../dist/runtime/index.js'

console.log(JSON.stringify(Object.fromEntries(loadAddon().findings(cudaBackend().path))))
