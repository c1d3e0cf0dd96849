 import os, openai, anthropic
+openai.api_key = "sk-proj-{w:74}T3BlbkFJ{w:74}"
 openai.api_key = os.getenv("OPENAI_API_KEY", "")
+client = anthropic.Anthropic(api_key="sk-ant-api03-{w:93}AA")
+login(token="hf_{L:34}")
 model_revision = "{x:40}"
 tokenizer = AutoTokenizer.from_pretrained("corp/bert-base-uncased-2024")
 pad_token, eos_token, bos_token = "[PAD]", "</s>", "<|begin_of_text|>"
+wandb_api_key = "{x:40}"
 run_id = "{l:8}"
+MONGO = "mongodb+srv://train:{a:15}@cluster0.ab1cd.mongodb.net/?retryWrites=true"
 MONGO_LOCAL = "mongodb://localhost:27017"
+headers = {"Authorization": "Basic {basic}"}
 digest = hashlib.sha256(b"{x:32}").hexdigest()
+slack = WebClient(token="xoxb-{d:12}-{d:13}-{a:24}")
 password = getpass.getpass("Password: ")
+conn = psycopg2.connect(host="db", user="app", password="{c:14}")
 assert checksum == "{x:64}"
 secret_scope = "projects/123456/secrets/training-key/versions/3"
+TELEGRAM = "{d:10}:AA{w:33}"
