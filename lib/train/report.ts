// report.html of a run folder: one file that needs no network and no program, so that it can be mailed. Drawn on the
// server side as SVG; the page's own script only shows values under the pointer.
import { join } from 'node:path'
import { writeFileAtomic } from '../data/atomic_file.js'
import { readReportData } from './report_data.js'
import { reportPage } from './report_page.js'

/** Writes `directory`/report.html from what the run has left there so far, and returns its path. ERR_FILE when a file
 *  cannot be read or written; files that are missing, or end in the middle of a line, are left out. */
export async function writeReport(directory: string): Promise<string> {
  const path = join(directory, 'report.html')
  await writeFileAtomic(path, reportPage(await readReportData(directory)))
  return path
}
