// openai-node against a running server:  npm install openai && node node_client.mjs [URL]
import assert from 'node:assert';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.argv[2] ?? 'http://127.0.0.1:8000/v1', apiKey: process.env.OCTAVO_API_KEY ?? 'none' });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'What is the capital of France?' }];
const tools = [
  {
    type: 'function',
    function: {
      name: 'weather',
      parameters: {
        type: 'object',
        properties: { city: { type: 'string', maxLength: 20 } },
        required: ['city'],
        additionalProperties: false,
      },
    },
  },
];

const checks = {
  async 'a chat'() {
    const answer = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16 });
    return answer.choices[0].message.content;
  },
  async 'a stream with usage'() {
    let text = '';
    let usage = null;
    const stream = await client.chat.completions.create({
      model, messages, temperature: 0, max_tokens: 16, stream: true, stream_options: { include_usage: true },
    });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    assert(usage.completion_tokens > 0);
    return text;
  },
  async 'the stream helper'() {
    return await client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 16 }).finalContent();
  },
  async 'a tool'() {
    const answer = await client.chat.completions.create({
      model, messages, tools, tool_choice: 'required', parallel_tool_calls: false, temperature: 0, max_tokens: 64,
    });
    return JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments).city;
  },
  async 'a stream that is left'() {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const _ of stream) break;
    return 'left';
  },
  async 'an error'() {
    await assert.rejects(client.chat.completions.create({ model, messages, temperature: 3 }), OpenAI.BadRequestError);
    return 'refused with a 400';
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    console.log(`ok      ${name.padEnd(24)} ${JSON.stringify(await check()).slice(0, 90)}`);
  } catch (error) {
    process.exitCode = 1;
    console.log(`FAILED  ${name.padEnd(24)} ${error}`);
  }
}
