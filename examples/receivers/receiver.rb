# A receiver of pgstream_hooks in Ruby, by its standard library alone: keeps a copy of the tables that it hears of.
#
#     WEBHOOK_SECRET=whsec_… ruby receiver.rb 8000
#
# POST takes webhooks; GET shows the rows.

require "json"
require "openssl"
require "socket"

SECRET = ENV.fetch("WEBHOOK_SECRET").delete_prefix("whsec_").unpack1("m")

# Whether the request is signed by our key, and not an old one that somebody sends again.
def genuine?(headers, body)
  timestamp = headers["webhook-timestamp"].to_i
  return false if (Time.now.to_i - timestamp).abs > 300
  signed = "#{headers["webhook-id"]}.#{timestamp}.".b + body
  expected = "v1," + [OpenSSL::HMAC.digest("SHA256", SECRET, signed)].pack("m0")
  # While a key is changed there are two signatures.
  headers["webhook-signature"].to_s.split(" ").any? { |part| OpenSSL.secure_compare(part, expected) }
end

# Rows by table and key. In earnest this is a database: write rows and last ids in one transaction.
class Copy
  attr_reader :rows

  def initialize
    @rows = {}
    @last = Hash.new("") # id of the last event of each row, also of those that are gone
    @emptied = Hash.new("") # id of the last truncate of each table
  end

  # Applies an event, unless a newer one of its row was here before: ids sort in commit order.
  def apply(event)
    id, action, schema, name, key = event["data"].values_at("id", "action", "schema", "table", "key")
    table = [schema, name]
    case action
    when "truncate"
      return if id <= @emptied[table]
      @emptied[table] = id
      @rows.reject! { |place, _| place[0] == table && @last[place] < id }
    when "insert", "update", "delete", "read"
      place = [table, key]
      return if key.nil? || id <= @last[place] || id <= @emptied[table]
      old = [table, event["data"]["old_key"] || key]
      before = @last[old] < id ? @rows.delete(old) || {} : {}
      @last[old] = [@last[old], id].max
      @last[place] = id
      # Large values that an update left alone are not in the record.
      kept = before.slice(*event["data"]["unchanged"])
      @rows[place] = kept.merge(event["data"]["record"]) unless action == "delete"
    else
      return
    end
    puts "#{action} #{name} #{key.to_json}"
  end
end

copy = Copy.new
lock = Mutex.new

# A web server of a few lines, so that this needs no gem; in earnest this is Rack's `call`.
def serve(client)
  while (line = client.gets)
    method = line.split(" ").first
    headers = {}
    while (header = client.gets.chomp) != ""
      name, value = header.split(":", 2)
      headers[name.downcase] = value.strip
    end
    body = client.read(headers["content-length"].to_i)
    status, answer = yield(method, headers, body)
    length = status == 204 ? "" : "content-length: #{answer.bytesize}\r\n"
    client.write("HTTP/1.1 #{status} -\r\n#{length}\r\n#{answer}")
  end
rescue Errno::ECONNRESET, Errno::EPIPE
  # The caller is gone.
ensure
  client.close
end

$stdout.sync = true
server = TCPServer.new("127.0.0.1", Integer(ARGV[0]))
loop do
  Thread.new(server.accept) do |client|
    serve(client) do |method, headers, body|
      next [200, lock.synchronize { copy.rows.values.to_json }] if method == "GET"
      next [401, ""] unless genuine?(headers, body)
      events = JSON.parse(body)
      lock.synchronize { (events.is_a?(Array) ? events : [events]).each { |event| copy.apply(event) } }
      # Only now: what is answered with 2xx is not sent again.
      [204, ""]
    end
  end
end
