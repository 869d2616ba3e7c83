// The native boundary.
export { type Addon, loadAddon } from './addon.js'
export {
  Device,
  type DeviceOptions,
  type DeviceStats,
  type OpTensor,
  type RecordedCommands,
  tensorBytes,
} from './device.js'
