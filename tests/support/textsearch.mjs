// A PostgreSQL with pgvector and pg_textsearch at a Unix socket, until its input ends.
import { PGlite } from '@electric-sql/pglite'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'
import { pg_textsearch } from '@electric-sql/pglite-pg_textsearch'
import { vector } from '@electric-sql/pglite-pgvector'

// The server says by one that it listens, and Node.js has had them since 19.
globalThis.CustomEvent ??= class extends Event {
  constructor(type, { detail } = {}) {
    super(type)
    this.detail = detail
  }
}

const path = process.argv.at(-1)
const db = await PGlite.create({ extensions: { vector, pg_textsearch } })
const server = new PGLiteSocketServer({ db, path, maxConnections: 20 })
await server.start()
console.log('ready')
process.stdin.resume()
process.stdin.on('end', () => process.exit())
