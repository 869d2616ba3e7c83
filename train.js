#!/usr/bin/env node
import { main } from './dist/cli/main.js'

await main(['train', ...process.argv.slice(2)])
