// The native boundary.
export { type Addon, addonFile, type BackendFacts, loadAddon } from './addon.js'
export { type CudaBackend, cudaBackend } from './backend.js'
export {
  Device,
  type DeviceOptions,
  type DeviceStats,
  type OpTensor,
  type OpTime,
  type RecordedCommands,
  tensorBytes,
} from './device.js'
