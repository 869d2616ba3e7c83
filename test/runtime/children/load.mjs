// Prints the error of loading the addon.
import { openDevice } from '../../../dist/ops/index.js'

try {
  openDevice()
} catch ({ code, message, hint }) {
  console.log(JSON.stringify({ code, message, hint }))
}
