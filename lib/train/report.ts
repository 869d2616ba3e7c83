import { writeFileAtomic } from '../data/atomic_file.js'
export async function writeReport(directory: string): Promise<void> { await writeFileAtomic(`${directory}/report.html`, '<!doctype html>') }
