// How late a 5 ms timer comes, first idle, then beside a queue that keeps every core busy. Prints both, in
// milliseconds.
import { availableParallelism } from 'node:os'
import { makeBlock, open, pass } from './compute.mjs'

const PERIOD = 5

/** Lateness of each tick during `duration` ms. */
function measure(duration) {
  const late = []
  return new Promise((resolve) => {
    const end = performance.now() + duration
    let due = performance.now() + PERIOD
    const tick = () => {
      const now = performance.now()
      late.push(now - due)
      if (now >= end) return resolve(late.sort((a, b) => a - b))
      due = now + PERIOD
      setTimeout(tick, PERIOD)
    }
    setTimeout(tick, PERIOD)
  })
}

const summary = (late) => ({ p99: late[Math.floor(late.length * 0.99)], worst: late.at(-1), ticks: late.length })

const idle = summary(await measure(700))
const device = open(availableParallelism())
const block = makeBlock(device)
let working = true
const worker = (async () => {
  let passes = 0
  for (; working; passes += 8) {
    for (let i = 0; i < 8; i++) pass(block).dispose()
    await device.idle()
  }
  return passes
})()
const busy = summary(await measure(2000))
working = false
console.log(JSON.stringify({ idle, busy, passes: await worker }))
device.close()
